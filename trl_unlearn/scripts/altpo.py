"""
Unlearns with AltPO.

```bash
accelerate launch -m trl_unlearn.scripts.altpo --config recipes/world/llama-0.5m/altpo.yaml
```
"""

from trl_unlearn.scripts.unlearn import main


if __name__ == "__main__":
    main("AltPO")
