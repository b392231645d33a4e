"""
Unlearns with NPO.

```bash
accelerate launch -m trl_unlearn.scripts.npo --config recipes/world/llama-0.5m/npo.yaml
```
"""

from trl_unlearn.scripts.unlearn import main


if __name__ == "__main__":
    main("NPO")
