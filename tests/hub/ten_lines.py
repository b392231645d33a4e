"""What a user writes, from data set to pushed adapter; `test_end_to_end.py` runs it against the test Hub."""

from datasets import load_dataset
from peft import LoraConfig

from trl_unlearn import NPOConfig, NPOTrainer, UnlearningEvalCallback
from trl_unlearn.evaluation.arguments import EvaluationArguments


trainer = NPOTrainer(
    model="endtoend/base",
    args=NPOConfig("outputs", push_to_hub=True, learning_rate=1e-2, max_steps=4, eval_strategy="steps", eval_steps=2),
    train_dataset=load_dataset("endtoend/world", "forget", split="train"),
    retain_dataset=load_dataset("endtoend/world", "retain", split="train"),
    eval_dataset=load_dataset("endtoend/world", "forget", split="train"),
    peft_config=LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"),
)
evaluation = EvaluationArguments(eval_benchmark="world", eval_max_new_tokens=8)
trainer.add_callback(UnlearningEvalCallback(trainer, evaluation, "endtoend/world"))
trainer.train()
trainer.push_to_hub()
