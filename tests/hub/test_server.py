"""The real clients, unpatched, get from the test Hub what they get from the Hub."""

import hashlib
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest


HF = str(Path(sys.executable).with_name("hf"))


def result_of(process):
    """What a client process printed last."""
    return json.loads(process.stdout.splitlines()[-1])


# Says what an error was, as a caller can tell it.
ATTEMPT = """
import json, sys
from huggingface_hub import HfApi, hf_hub_url, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

api = HfApi()

def attempt(function, *arguments, **options):
    try:
        function(*arguments, **options)
        return "done"
    except Exception as error:
        response = getattr(error, "response", None)
        return f"{type(error).__name__} {response.status_code}" if response is not None else type(error).__name__
"""


def test_files_go_up_and_come_back(hub_server, client, tmp_path):
    folder = tmp_path / "model"
    (folder / "deep" / "er").mkdir(parents=True)
    files = {
        "README.md": b"---\ntags: [unlearning]\nlibrary_name: peft\n---\n# A card\n",
        "adapter_model.safetensors": bytes(range(256)) * 1000,
        "deep/er/notes.txt": "naïve".encode(),
        "empty.bin": b"",
    }
    for path, content in files.items():
        (folder / path).write_bytes(content)
    code = """
from pathlib import Path
repo, folder = sys.argv[1:]
answer = {"url": str(api.create_repo(repo, private=True)), "again": attempt(api.create_repo, repo)}
api.create_repo(repo, exist_ok=True)
first = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="first")
answer["download"] = snapshot_download(repo)
answer["part"] = sorted(str(path.relative_to(Path(folder))) for path in Path(
    snapshot_download(repo, allow_patterns="deep/*", local_dir=folder + "/part")).rglob("*.txt"))
(Path(folder) / "README.md").write_text("# Another card")
second = api.upload_folder(repo_id=repo, folder_path=folder, delete_patterns=["deep/*"], ignore_patterns=["deep/*", "part/*"])
info = api.model_info(repo, files_metadata=True)
answer |= {
    "commits": [first.oid, second.oid],
    "history": [(commit.commit_id, commit.title) for commit in api.list_repo_commits(repo)],
    "info": [info.sha, info.private, info.gated, sorted(file.rfilename for file in info.siblings)],
    "old": sorted(api.list_repo_files(repo, revision=first.oid)),
    "lfs": {path.path: path.lfs.sha256 if path.lfs else None for path in api.get_paths_info(repo, ["README.md", "empty.bin", "adapter_model.safetensors"])},
    "exists": [api.file_exists(repo, "README.md"), api.file_exists(repo, "deep/er/notes.txt"), api.repo_exists(repo + "x")],
}
api.delete_repo(repo)
answer["deleted"] = api.repo_exists(repo)
print(json.dumps(answer))
"""
    answer = result_of(client(ATTEMPT + code, "ada/model", folder, token=hub_server.token("ada")))
    assert answer["url"] == f"{hub_server.url}/ada/model"
    assert answer["again"] == "HfHubHTTPError 409"
    downloaded = Path(answer["download"])
    assert downloaded.name == answer["commits"][0]
    for path, content in files.items():
        assert (downloaded / path).read_bytes() == content
    assert answer["part"] == ["part/deep/er/notes.txt"]
    assert [sha for sha, _ in answer["history"][:2]] == answer["commits"][::-1]
    assert [title for _, title in answer["history"]][1:] == ["first", "initial commit"]
    now = [".gitattributes", "README.md", "adapter_model.safetensors", "empty.bin"]
    assert answer["info"] == [answer["commits"][1], True, False, now]
    assert answer["old"] == sorted([".gitattributes", *files])
    sha256 = hashlib.sha256(files["adapter_model.safetensors"]).hexdigest()
    assert answer["lfs"] == {"README.md": None, "empty.bin": None, "adapter_model.safetensors": sha256}
    assert answer["exists"] == [True, False, False] and answer["deleted"] is False
    uploads = [request.path for request in hub_server.requests if request.method == "PUT"]
    assert uploads == [f"/lfs/{sha256}"], "the second push must not upload the large file again"


def test_who_may_read_and_write(hub_server, client):
    for name in ("private", "gated", "open"):
        hub_server.repository("models", f"owner/{name}").commit({"config.json": b"{}"})
    hub_server.repository("models", "owner/private").private = True
    hub_server.repository("models", "owner/gated").gated = True
    hub_server.repository("models", "owner/gated").granted.add("friend")
    tokens = {
        "owner": hub_server.token("owner"),
        "reader": hub_server.token("owner", "read"),
        "friend": hub_server.token("friend"),
        "other": hub_server.token("other"),
        "invalid": "hf_notAToken",
        "none": False,
    }
    code = """
answer = {}
for who, token in json.loads(sys.argv[1]).items():
    answer[who] = [
        attempt(api.whoami, token=token).split()[-1] if token else None,
        *(attempt(api.get_hf_file_metadata, url=hf_hub_url(f"owner/{name}", "config.json"), token=token)
          for name in ("open", "gated", "private")),
        attempt(api.model_info, "owner/gated", token=token),
        attempt(api.upload_file, path_or_fileobj=b"1", path_in_repo="new", repo_id="owner/open", token=token),
        attempt(api.create_repo, "owner/new-" + who, token=token),
    ]
answer["role"] = api.whoami(token=json.loads(sys.argv[1])["reader"])["auth"]["accessToken"]["role"]
print(json.dumps(answer))
"""
    answer = result_of(client(ATTEMPT + code, json.dumps(tokens)))
    gated, absent = "GatedRepoError", "RepositoryNotFoundError"
    refused = "HfHubHTTPError"
    assert answer == {
        "owner": ["done"] * 7,
        "reader": ["done"] * 5 + [f"{refused} 403"] * 2,
        "friend": ["done"] * 3 + [f"{absent} 404", "done"] + [f"{refused} 403"] * 2,
        "other": ["done", "done", f"{gated} 403", f"{absent} 404", "done"] + [f"{refused} 403"] * 2,
        "invalid": ["401"] + [f"{refused} 401"] * 6,
        "none": [None, "done", f"{gated} 401", f"{absent} 401", "done", f"{absent} 401", f"{refused} 401"],
        "role": "read",
    }


def test_branches_tags_and_a_parent_that_is_not_the_head(hub_server, client):
    code = """
repo = sys.argv[1]
api.create_repo(repo)
start = api.model_info(repo).sha
api.create_branch(repo, branch="runs/1")
again = [attempt(api.create_branch, repo, branch="runs/1"), attempt(api.create_branch, repo, branch="runs/1", exist_ok=True)]
push = dict(path_or_fileobj=b"1", repo_id=repo)
on_branch = api.upload_file(**push, path_in_repo="branch.txt", revision="runs/1").oid
api.create_tag(repo, tag="v1", revision="runs/1")
head = api.upload_file(**push, path_in_repo="main.txt", parent_commit=start).oid
stale = attempt(api.upload_file, **push, path_in_repo="stale.txt", parent_commit=start)
refs = api.list_repo_refs(repo)
print(json.dumps({
    "commits": [start, on_branch, head],
    "again": again,
    "stale": stale,
    "refs": {ref.ref: ref.target_commit for ref in refs.branches + refs.tags},
    "files": {revision: api.list_repo_files(repo, revision=revision) for revision in ("main", "runs/1", "v1", head, start[:8])},
    "missing": [attempt(snapshot_download, repo, revision="v9"), attempt(api.upload_file, **push, path_in_repo="x", revision="v9"),
                attempt(api.hf_hub_download, repo, "no.txt")],
}))
"""
    answer = result_of(client(ATTEMPT + code, "bea/model", token=hub_server.token("bea")))
    start, on_branch, head = answer["commits"]
    assert answer["again"] == ["HfHubHTTPError 409", "done"]
    assert answer["stale"] == "HfHubHTTPError 412"
    assert answer["refs"] == {"refs/heads/main": head, "refs/heads/runs/1": on_branch, "refs/tags/v1": on_branch}
    assert answer["files"] == {
        "main": [".gitattributes", "main.txt"],
        "runs/1": [".gitattributes", "branch.txt"],
        "v1": [".gitattributes", "branch.txt"],
        head: [".gitattributes", "main.txt"],
        start[:8]: [".gitattributes"],
    }
    assert answer["missing"][:2] == ["RevisionNotFoundError 404"] * 2
    assert answer["missing"][2] in ("RemoteEntryNotFoundError 404", "EntryNotFoundError 404")


def test_cards_that_the_hub_refuses(hub_server, client):
    cards = {
        "plain": "---\nlicense: mit\n---\n# Good",
        "none": "# No metadata",
        "broken": "---\na: [1\n---\n",
        "python": "---\nx: !!python/object/apply:os.getcwd []\n---\n",
        "list": "---\n- 1\n---\n",
        "local base": "---\nbase_model: /home/me/model\n---\n",
    }
    code = """
from huggingface_hub import ModelCard
repo = sys.argv[1]
api.create_repo(repo)
cards = json.loads(sys.argv[2])
print(json.dumps({
    name: attempt(api.upload_file, path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo)
    for name, card in cards.items()
}))
"""
    token = hub_server.token("cleo")
    answer = result_of(client(ATTEMPT + code, "cleo/model", json.dumps(cards), token=token))
    assert [name for name, outcome in answer.items() if outcome == "done"] == ["plain", "none"]
    assert {outcome for outcome in answer.values() if outcome != "done"} == {"ValueError"}
    assert hub_server.repository("models", "cleo/model").files()["README.md"] == b"# No metadata"


def test_faults(hub_server, client):
    code = """
push = dict(path_or_fileobj=b"1" * 10, repo_id=sys.argv[1])
print(json.dumps(attempt(eval(sys.argv[2]))))
"""
    token = hub_server.token("dora")
    repository = hub_server.repository("models", "dora/model")
    create = 'lambda: api.create_repo("dora/new")'
    push = 'lambda: api.upload_file(**push, path_in_repo="{}")'
    with pytest.raises(ValueError, match="not an endpoint"):
        hub_server.fail("comit")

    def outcome(action):
        return result_of(client(ATTEMPT + code, "dora/model", action, token=token))

    hub_server.fail("create", 503)
    hub_server.fail("upload", 500)
    assert outcome(create) == "HfHubHTTPError 503" and ("models", "dora/new") not in hub_server.repositories
    assert outcome(create) == "done" and ("models", "dora/new") in hub_server.repositories
    assert outcome(push.format("a.bin")) == "done", "an upload is tried again"
    assert len([request for request in hub_server.requests if request.method == "PUT"]) == 2

    hub_server.fail("commit", drop="before")
    assert "Error" in outcome(push.format("b.bin")) and "b.bin" not in repository.files()
    hub_server.fail("commit", drop="after")
    assert "Error" in outcome(push.format("c.bin")) and "c.bin" in repository.files()
    hub_server.fail("info", 429, times=2, headers={"Retry-After": "7"})
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError) as limited:
            urllib.request.urlopen(f"{hub_server.url}/api/models/dora/model")
        assert limited.value.code == 429 and limited.value.headers["Retry-After"] == "7"
    assert json.load(urllib.request.urlopen(f"{hub_server.url}/api/models/dora/model"))["id"] == "dora/model"
    hub_server.failing["HEAD"] = 501
    assert "Error" in outcome('lambda: api.hf_hub_download("dora/model", "a.bin")')


def test_transformers_and_peft(hub_server, client, model_dir):
    code = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model.push_to_hub("emma/base")
AutoTokenizer.from_pretrained(sys.argv[1]).push_to_hub("emma/base")
base, tokenizer = AutoModelForCausalLM.from_pretrained("emma/base"), AutoTokenizer.from_pretrained("emma/base")
ids = tokenizer("Who is it?", return_tensors="pt")["input_ids"]
answer = {"base": torch.equal(model(ids).logits, base(ids).logits)}
tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"))
tuned.push_to_hub("emma/adapter", private=True)
expected = tuned.eval()(ids).logits
loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("emma/base"), "emma/adapter")
answer["adapter"] = torch.equal(expected, loaded.eval()(ids).logits)
answer["auto"] = torch.equal(expected, AutoPeftModelForCausalLM.from_pretrained("emma/adapter").eval()(ids).logits)
answer["transformers"] = torch.allclose(expected, AutoModelForCausalLM.from_pretrained("emma/adapter").eval()(ids).logits)
print(json.dumps(answer))
"""
    answer = result_of(client(code, model_dir, token=hub_server.token("emma")))
    assert answer == {"base": True, "adapter": True, "auto": True, "transformers": True}
    adapter = hub_server.repository("models", "emma/adapter")
    assert adapter.private and {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= set(
        adapter.files()
    )


def test_datasets_and_evaluate(hub_server, client):
    metric = """
import datasets
import evaluate

class Hits(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"hits": sum(a == b for a, b in zip(predictions, references))}
"""
    card = """---
configs:
- config_name: forget
  data_files: forget/*.jsonl
- config_name: retain
  data_files: retain/*.jsonl
---
"""
    questions = hub_server.repository("datasets", "fay/questions")
    questions.private = True
    questions.commit(
        {
            "README.md": card.encode(),
            "forget/train.jsonl": b'{"question": "Who?"}\n',
            "retain/train.jsonl": b'{"question": "What?"}\n{"question": "Where?"}\n',
        }
    )
    hub_server.repository("spaces", "fay/hits").commit({"hits.py": metric.encode()})
    code = """
import json
import evaluate
from datasets import Dataset, load_dataset
rows = {config: load_dataset("fay/questions", config, split="train")["question"][:] for config in ("forget", "retain")}
Dataset.from_list([{"n": 1}, {"n": 2}]).push_to_hub("fay/numbers", "some", private=True)
rows["pushed"] = load_dataset("fay/numbers", "some", split="train")["n"][:]
hits = evaluate.load("fay/hits", module_type="metric").compute(predictions=[1.0, 2.0], references=[1.0, 3.0])
print(json.dumps(rows | hits))
"""
    answer = result_of(client(code, token=hub_server.token("fay")))
    assert answer == {"forget": ["Who?"], "retain": ["What?", "Where?"], "pushed": [1, 2], "hits": 1}


def test_the_hf_command(hub_server, client, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"0" * 100)
    token = hub_server.token("gina")
    assert "gina" in client([HF, "auth", "whoami"], token=token).stdout
    client([HF, "upload", "gina/model", tmp_path / "weights.safetensors", "weights.safetensors"], token=token)
    client([HF, "download", "gina/model", "--local-dir", tmp_path / "down"], token=token)
    assert (tmp_path / "down" / "weights.safetensors").read_bytes() == b"0" * 100
    refused = client([HF, "download", "gina/absent"], token=token, check=False)
    assert refused.returncode == 1 and "gina/absent" in refused.stdout + refused.stderr
