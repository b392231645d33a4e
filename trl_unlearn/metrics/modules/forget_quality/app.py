"""A page to try the metric on: its arguments in, its result out, both as JSON."""

import json
from pathlib import Path

import evaluate
import gradio as gr


EXAMPLE = {"predictions": [0.1, 0.2, 0.3], "retain_truth_ratios": [0.9, 1.0, 1.1]}

metric = evaluate.load(str(Path(__file__).with_name("forget_quality.py")))
demo = gr.Interface(
    fn=lambda arguments: metric.compute(**json.loads(arguments)),
    inputs=gr.Code(value=json.dumps(EXAMPLE), language="json", wrap_lines=True, label="Arguments of compute"),
    outputs=gr.JSON(label="Result"),
    title="Forget quality",
    description=metric.info.description,
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
