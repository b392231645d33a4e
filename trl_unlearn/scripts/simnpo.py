"""
Unlearns with SimNPO.

```bash
accelerate launch -m trl_unlearn.scripts.simnpo --config recipes/world/llama-0.5m/simnpo.yaml
```
"""

from trl_unlearn.scripts.unlearn import main


if __name__ == "__main__":
    main("SimNPO")
