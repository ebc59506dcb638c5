#!/bin/sh
# Fill the ignored folder .gpu/ of this checkout with what a machine without a network lacks: wheels for its Python 3.12,
# and CIFAR-10 (JPEG). DATA is a folder with cifar10_jpeg.npz and unpack.py.
#
#   sh benchmarks/gpu/prepare.sh DATA
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
rm -rf "$root/.gpu"
mkdir -p "$root/.gpu/wheels" "$root/.gpu/data"
cp "$1/cifar10_jpeg.npz" "$1/unpack.py" "$root/.gpu/data/"
chmod u+w "$root/.gpu/data/"*
platforms=$(for n in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do printf -- '--platform manylinux_%s_x86_64 ' "$n"; done)
# Not PyTorch, NumPy, Pillow, matplotlib, rich, jinja2, safetensors, pytest, hypothesis, onnx, which are there.
# shellcheck disable=SC2086
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $platforms \
    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$root/.gpu/wheels" \
    kornia==0.9.0 kornia_rs==0.2.0 tyro==1.0.17 docstring_parser==0.18.0 typeguard==4.6.0 pooch==1.9.0 platformdirs==4.14.5 \
    loguru==0.7.3 snntorch==1.0.0 spikingjelly==2.0.0 nir==1.0.8 nirtorch==2.6
size=$(du -sm "$root/.gpu" | cut -f1)
echo "$root/.gpu: $size MiB"
test "$size" -le 60
