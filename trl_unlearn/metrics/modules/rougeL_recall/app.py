"""A page to try the metric on: its arguments in, its result out, both as JSON."""

import json
from pathlib import Path

import evaluate
import gradio as gr


EXAMPLE = {"predictions": ["They play the viola."], "references": ["They play the cello."]}

metric = evaluate.load(str(Path(__file__).with_name("rougeL_recall.py")))
demo = gr.Interface(
    fn=lambda arguments: metric.compute(**json.loads(arguments)),
    inputs=gr.Code(value=json.dumps(EXAMPLE), language="json", wrap_lines=True, label="Arguments of compute"),
    outputs=gr.JSON(label="Result"),
    title="ROUGE-L recall",
    description=metric.info.description,
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
