#!/usr/bin/env bash
# Builds llama.cpp's server from the sources inside the llama-cpp-python sdist, into bench/out/llama.cpp. Some 10 minutes
# on two cores. Needs cmake, ninja and a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")"
version=0.3.36
work=out/llama.cpp
mkdir -p "$work/bin"
if [ ! -d "$work/src" ]; then
  ../.venv/bin/python -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$work" "llama-cpp-python==$version"
  mkdir "$work/unpacked"
  tar xzf "$work/llama_cpp_python-$version.tar.gz" -C "$work/unpacked" --strip-components 1
  mv "$work/unpacked/vendor/llama.cpp" "$work/src"
  rm -rf "$work/unpacked" "$work"/*.tar.gz
fi
cmake -S "$work/src" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF \
  -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF >/dev/null
cmake --build "$work/build" --target llama-server
cp "$work/build/bin/llama-server" "$work/bin/"
