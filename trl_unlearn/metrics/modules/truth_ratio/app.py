"""A page to try the metric on: its arguments in, its result out, both as JSON."""

import json
from pathlib import Path

import evaluate
import gradio as gr


EXAMPLE = {"predictions": [0.1, 1.0], "references": [[2.0, 2.5, 3.0], [0.5, 0.6, 0.9]], "aggregation": "retain"}

metric = evaluate.load(str(Path(__file__).with_name("truth_ratio.py")))
demo = gr.Interface(
    fn=lambda arguments: metric.compute(**json.loads(arguments)),
    inputs=gr.Code(value=json.dumps(EXAMPLE), language="json", wrap_lines=True, label="Arguments of compute"),
    outputs=gr.JSON(label="Result"),
    title="Truth ratio",
    description=metric.info.description,
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
