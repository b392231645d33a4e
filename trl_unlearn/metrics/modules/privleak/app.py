"""A page to try the metric on: its arguments in, its result out, both as JSON."""

import json
from pathlib import Path

import evaluate
import gradio as gr


EXAMPLE = {"predictions": [1.0, 3.0], "holdout_scores": [2.0, 4.0], "retain_auc": 0.5}

metric = evaluate.load(str(Path(__file__).with_name("privleak.py")))
demo = gr.Interface(
    fn=lambda arguments: metric.compute(**json.loads(arguments)),
    inputs=gr.Code(value=json.dumps(EXAMPLE), language="json", wrap_lines=True, label="Arguments of compute"),
    outputs=gr.JSON(label="Result"),
    title="PrivLeak",
    description=metric.info.description,
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
