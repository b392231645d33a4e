"""A page to try the metric on: its arguments in, its result out, both as JSON."""

import json
from pathlib import Path

import evaluate
import gradio as gr


EXAMPLE = {"predictions": [0.99, 0.98, 0.47, 0.43, 0.92, 0.57, 0.41, 0.9, 0.54]}

metric = evaluate.load(str(Path(__file__).with_name("model_utility.py")))
demo = gr.Interface(
    fn=lambda arguments: metric.compute(**json.loads(arguments)),
    inputs=gr.Code(value=json.dumps(EXAMPLE), language="json", wrap_lines=True, label="Arguments of compute"),
    outputs=gr.JSON(label="Result"),
    title="Model utility",
    description=metric.info.description,
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
