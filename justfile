# Short names for the commands of daily work; each line also runs without just.

setup:
    pip install -e ".[test,parity,dev]"

build:
    pip install --no-build-isolation -e .

test:
    pytest --ignore tests/parity

kernels:
    pytest tests/kernels

parity:
    pytest tests/parity

lint:
    ruff check . && ruff format --check .
    git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' | xargs clang-format --dry-run --Werror

types:
    mypy

bench model="haiku":
    phlite bench {{model}} -p 32,128,512 -n 64

size:
    pip wheel --no-deps -w dist . && ls -l dist

ci:
    .ci/run
