"""
Merges an adapter into its base model.

```bash
trl-unlearn merge me/Llama-3.2-1B-Instruct-tofu-forget10-NPO-lora merged
trl-unlearn push merged me/Llama-3.2-1B-Instruct-tofu-forget10-NPO
```

The logits before and after are compared on a few prompts. The folder then has the weights in safetensors, the tokenizer,
and the adapter's results, recipe and card.
"""

import argparse
import sys


def main() -> None:
    parser = argparse.ArgumentParser(prog="trl-unlearn merge", description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("adapter", metavar="ADAPTER", help="Adapter: an id on the Hub or a folder.")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="New folder for the merged model.")
    parser.add_argument("--revision", help="Branch, tag or commit of the adapter. Default: its main branch.")
    parser.add_argument("--subfolder", help="Folder of the adapter in its repository.")
    parser.add_argument("--base_model", help="Id or folder of the base. Default: the one that the adapter names.")
    parser.add_argument("--base_revision", help="Revision of the base. Default: the one that the adapter records.")
    parser.add_argument("--dtype", default="auto", help="Data type to merge and save in. Default: the base's.")
    options = vars(parser.parse_args())

    from accelerate import PartialState

    from trl_unlearn.hub.merge import merge_adapter

    try:
        parity = merge_adapter(**options, device_map=str(PartialState().device))
    except (OSError, ValueError) as error:
        sys.exit(f"trl-unlearn merge: {error}")
    print(
        f"Logits before and after the merge differ by at most {parity['max_abs_difference']:.3g} (the largest is "
        f"{parity['max_abs_logit']:.3g}), and the likeliest token is the same at {parity['same_top_token']:.1%} of "
        f"{parity['num_positions']} positions.\nWritten to {options['output_dir']}. To publish it: trl-unlearn push "
        f"{options['output_dir']} org/name"
    )


if __name__ == "__main__":
    main()
