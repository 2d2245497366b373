# ruff: noqa: E501
"""A pretended CUDA device for PyTorch builds without CUDA: the CPU's numbers, on another device.

    pytest -p pretend_cuda tests …            # as a plugin (this folder on PYTHONPATH); test_pretended.py does
    python -m pretend_cuda SCRIPT.py ARGS …   # or: python -m pretend_cuda -m MODULE ARGS …
    import pretend_cuda                       # before torch, which looks once for what CUDA there is

How: no wrapper subclass. A little C++ (compiled once, by g++) gives the dispatch key CUDA of a CPU-only PyTorch
what it lacks: a device guard, an allocator (host memory, counted), a generator, and the kernels that make or
re-stride tensors. Every other kernel is `on_device` below: it checks where the operands are, gives their memory
to the CPU's kernel under the CPU's name, and names what comes back after the device. So `x.device`, `type(x) is
Tensor`, autograd on its device thread, CUDA's autocast policy, GradScaler, foreach and fused optimisers, `.data =`,
torch.save's locations, `.numpy()`'s refusal and TensorIterator's errors are PyTorch's own. The checks that PyTorch
generates for CUDA alone are read from native_functions.yaml, which torchgen ships. Numbers drawn on the device come
from its own generator, which agrees with the CPU's for no seed.

With PRETEND_CUDA_LOG=FILE, what ran is written as JSON at exit: `operations` with their dtypes, and `transfers`:
copies between host and device and waits for the device, by the innermost line on the stack of a file whose path
holds PRETEND_CUDA_WATCH. Not pretended: speed, asynchrony, CUDA's numerics and choice of kernels (attention is always
`math`), several devices, nccl, graphs, Triton, hence torch.compile's inductor.
"""

import atexit
import collections
import ctypes
import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import types
from importlib.util import find_spec
from pathlib import Path

CPP = r"""
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
using namespace at;
template <class T> using Maybe = std::optional<T>;
static const Device HERE(kCUDA, 0);
static Device ours(Device d) { TORCH_CHECK(d.index() <= 0, "CUDA error: invalid device ordinal (pretended: one device)"); return HERE; }
struct Guard final : c10::impl::DeviceGuardImplInterface {  // one stream, on which everything is done at once
  DeviceType type() const override { return kCUDA; }
  Device exchangeDevice(Device d) const override { return ours(d); }
  Device getDevice() const override { return HERE; }
  void setDevice(Device d) const override { ours(d); }
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return Stream(Stream::DEFAULT, HERE); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, HERE); }
  Stream exchangeStream(Stream) const override { return Stream(Stream::DEFAULT, HERE); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
// Memory of one device under the name of the other; what has the device's name is counted.
static std::atomic<int64_t> held{0}, peak{0};
static void count(int64_t n) { int64_t now = held += n, most = peak; while (now > most && !peak.compare_exchange_weak(most, now)); }
struct Kept { Storage owner; int64_t size; };
static DataPtr named(const Storage& s, Device to) {
  int64_t n = to.is_cuda() ? s.nbytes() : 0; count(n);
  return DataPtr(s.mutable_data(), new Kept{s, n}, [](void* c) { auto k = (Kept*)c; count(-k->size); delete k; }, to);
}
struct Memory final : Allocator {
  DataPtr allocate(size_t n) override { auto cpu = GetCPUAllocator(); return named(Storage(Storage::use_byte_size_t(), n, cpu->allocate(n), cpu, false), HERE); }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
} memory;
REGISTER_ALLOCATOR(DeviceType::CUDA, &memory);
static Tensor as(const Tensor& t, Device to) {
  auto allocator = to.is_cuda() ? (Allocator*)&memory : GetCPUAllocator();
  Storage out(Storage::use_byte_size_t(), t.storage().nbytes(), named(t.storage(), to), allocator, true);
  auto r = at::detail::make_tensor<TensorImpl>(std::move(out), to.is_cuda() ? DispatchKey::CUDA : DispatchKey::CPU, t.dtype());
  r.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return r;
}
struct Gen final : GeneratorImpl {  // a CPU generator with another seed and a longer state
  Generator own;
  Gen(Generator g) : GeneratorImpl(HERE, DispatchKeySet(DispatchKey::CUDA)), own(std::move(g)) {}
  void set_current_seed(uint64_t s) override { own.set_current_seed(s ^ 0x5DEECE66D); }
  uint64_t current_seed() const override { return own.current_seed() ^ 0x5DEECE66D; }
  uint64_t seed() override { return own.seed() ^ 0x5DEECE66D; }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  Gen* clone_impl() const override { return new Gen(own.clone()); }
  c10::intrusive_ptr<TensorImpl> get_state() const override { return at::cat({own.get_state(), at::zeros({8}, kByte)}).getIntrusivePtr(); }
  void set_state(const TensorImpl& s) override {
    TORCH_CHECK(s.device().is_cpu() && s.dtype() == ScalarType::Byte, "RNG state must be a torch.ByteTensor");
    int64_t n = own.get_state().numel();
    TORCH_CHECK(s.numel() == n + 8, "RNG state is wrong size");
    own.set_state(at::from_blob((void*)s.data(), {n}, kByte).clone());
  }
};
struct Hooks final : CUDAHooksInterface {
  Hooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  Allocator* getPinnedMemoryAllocator() const override { return GetCPUAllocator(); }
  Generator getNewGenerator(DeviceIndex) const override { return make_generator<Gen>(at::detail::createCPUGenerator()); }
  const Generator& getDefaultGenerator(DeviceIndex) const override { static Generator g = getNewGenerator(0); return g; }
};
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Hooks);
static const DispatchKeySet KEYS(DispatchKey::CUDA);
static Tensor made(IntArrayRef n, Maybe<ScalarType> t, Maybe<Layout>, Maybe<Device> d, Maybe<bool>, Maybe<MemoryFormat> f) {
  ours(d.value_or(HERE)); return Tensor(at::detail::empty_generic(n, &memory, KEYS, dtype_or_default(t), f)); }
static Tensor laid(IntArrayRef n, IntArrayRef s, Maybe<ScalarType> t, Maybe<Layout>, Maybe<Device> d, Maybe<bool>) {
  ours(d.value_or(HERE)); return Tensor(at::detail::empty_strided_generic(n, s, &memory, KEYS, dtype_or_default(t))); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", made); m.impl("empty_strided", laid);
  m.impl("as_strided", native::as_strided_tensorimpl); m.impl("view", native::view);
  m.impl("_reshape_alias", native::_reshape_alias); m.impl("unfold", native::unfold);
  m.impl("resize_", native::resize_); m.impl("set_.source_Tensor", native::set_tensor_);
  m.impl("set_.source_Storage", static_cast<Tensor& (*)(Tensor&, Storage)>(native::set_));
  m.impl("set_.source_Storage_storage_offset", native::set_storage_cpu_);
}
TORCH_LIBRARY(pretend, m) {
  m.def("as_cpu(Tensor t) -> Tensor", [](const Tensor& t) { return as(t, kCPU); });
  m.def("as_cuda(Tensor t) -> Tensor", [](const Tensor& t) { return as(t, HERE); });
  m.def("own(Generator? g) -> Generator?", [](const Generator& g) { return static_cast<Gen*>(g.unsafeGetGeneratorImpl())->own; });
  m.def("generator() -> Generator?", []() { return at::detail::getCUDAHooks().getDefaultGenerator(0); });
  m.def("memory(bool reset) -> int[]", [](bool reset) { if (reset) peak = held.load(); return std::vector<int64_t>{held, peak}; });
}
"""


def _load():
    """Compile the C++ unless that is done, and load it before torch is."""
    assert "torch" not in sys.modules, "import pretend_cuda before torch"
    home = Path(find_spec("torch").origin).parent
    mark = hashlib.sha256((CPP + str(home)).encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir(), f"pretend_cuda_{os.getuid()}", f"{mark}.so")
    if not library.exists():
        library.parent.mkdir(mode=0o700, exist_ok=True)
        aside = library.with_suffix(f".{os.getpid()}")
        told = [
            f"-I{home}/include",
            f"-L{home}/lib",
            f"-Wl,-rpath,{home}/lib",
            "-ltorch_cpu",
            "-lc10",
            "-o",
            str(aside),
        ]
        subprocess.run(
            ["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-x", "c++", "-"] + told,
            input=CPP,
            text=True,
            check=True,
        )
        aside.rename(library)
    for name in (f"{home}/lib/libtorch_cpu.so", str(library)):
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


_load()
import torch  # noqa: E402

TOTAL = 80 * 2**30  # bytes that the device says it has
FLOATS = [
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "addmv",
    "addr",
    "dot",
    "vdot",
    "convolution",
    "_cdist_forward",
]  # CUDA has no integers there
INDEXED = ["index", "_index_put_impl", "index_put", "_unsafe_index"]
WAITS = [
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "multinomial",
]
seen = {"operations": collections.Counter(), "transfers": collections.Counter()}
_watch = os.environ.get("PRETEND_CUDA_WATCH", "scoretune/")


def _table():
    """{operation: (whether its wrapper for CUDA checks devices, whether CUDA has a kernel)}"""
    text = (
        Path(find_spec("torchgen").origin)
        .parent.joinpath("packaged/ATen/native/native_functions.yaml")
        .read_text()
    )
    found = {}
    for block in re.split(r"\n(?=- func: )", text)[1:]:
        told = re.search(r"\n  dispatch:\n((?:    .*\n?|\s*#.*\n)+)", block)
        keys = " ".join(re.findall(r"^    ([\w, ]+):", told[1], re.M)) if told else ""
        has_kernel = "CPU" not in keys or bool(re.search("CUDA|Composite", keys))
        found["aten::" + re.match(r"- func: ([\w.]+)", block)[1]] = (
            "device_check: NoCheck" not in block,
            has_kernel,
        )
    return found


_TABLE = _table()


def _note(kind, what):
    """Count a copy or a wait against the watched line that asked for it."""
    frame, place = sys._getframe(2), None
    while frame is not None and place is None:
        name = frame.f_code.co_filename
        if _watch in name and "site-packages" not in name and "pretend_cuda" not in name:
            place = f"{name.rpartition(_watch)[2]}:{frame.f_lineno}"
        frame = frame.f_back
    seen["transfers"][f"{kind} | {place} | {what}"] += 1


def _refuse(op, name, given, outputs):
    """Raise what PyTorch raises for operands that are not all on the device."""
    strict, has_kernel = _TABLE.get(op.name(), (True, True))
    if not has_kernel:
        raise NotImplementedError(
            f"Could not run '{op.name()}' with arguments from the 'CUDA' backend"
        )
    for key, value in given.items():
        for t in value if isinstance(value, (list, tuple)) else (value,):
            if not isinstance(t, torch.Tensor):
                continue
            if name in FLOATS and not t.is_floating_point() and not t.is_complex():
                raise RuntimeError(f"\"{name}_cuda\" not implemented for '{t.dtype}'")
            if t.is_cuda:
                continue
            if name in INDEXED and key == "indices" and given["self"].is_cuda:  # PyTorch moves them
                _note("host to device", f"{name} by indices of the CPU")
                continue
            takes_numbers = not strict and (name != "masked_fill" or key == "value")
            if (
                t.dim() == 0
                and key not in outputs
                and (takes_numbers or (key == "lr" and "fused" in name))
            ):
                continue  # 0-dimensional tensors of the CPU may join elementwise
            if name in INDEXED and key == "self":
                raise RuntimeError(
                    "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
                )
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
                f"{t.device}! (argument {key} of {op.name()})"
            )


def _random(found, on_cpu):
    """The CPU generator behind the one that an operation on the device draws with."""
    if on_cpu or (found is not None and found.device.type != "cuda"):
        wanted, got = ("cpu", "cuda") if on_cpu else ("cuda", found.device.type)
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{got}'")
    return torch.ops.pretend.own(found or torch.ops.pretend.generator())


def _lending(op, generator, told):
    """Call a kernel that draws with the CPU's default generator, as if that were another."""
    kept = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        return op(**told)
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(kept)


def _each(x, change, back):
    """Arguments or results with every tensor changed."""
    if isinstance(x, torch.Tensor):
        return change(x, back)
    if type(x) in (list, tuple):
        return type(x)(_each(part, change, back) for part in x)
    return torch.device("cpu") if isinstance(x, torch.device) else x


def _to_cpu(x, back):
    if not x.is_cuda:
        return x
    plain = torch.ops.pretend.as_cpu(x)
    back[id(plain)] = (plain, x)
    return plain


def _to_cuda(x, back):
    return (
        back[id(x)][1]
        if id(x) in back
        else torch.ops.pretend.as_cuda(x.resolve_conj().resolve_neg())
    )


def on_device(op, *args, **kwargs):
    """The kernel of every operation on the device: checks, then the CPU's kernel on the same memory."""
    schema, back, generator = op._schema, {}, None
    name, arguments = (
        schema.name.removeprefix("aten::").rstrip("_"),
        {a.name: a for a in schema.arguments},
    )
    given = dict(zip(arguments, args, strict=False)) | kwargs
    for key, value in given.items():  # a Python number in a tensor's place
        if isinstance(value, (bool, int, float, complex)) and str(arguments[key].type) == "Tensor":
            given[key] = torch.tensor(
                value, dtype=torch.float64 if isinstance(value, float) else None
            )
    told = {key: _each(value, _to_cpu, back) for key, value in given.items() if key != "pin_memory"}
    seen["operations"][
        f"{op.name()} {' '.join(sorted({str(x.dtype)[6:] for x, _ in back.values()}))}"
    ] += 1
    if torch.Tag.nondeterministic_seeded in op.tags:
        tensors = any(isinstance(x, torch.Tensor) for x in given.values())
        generator = _random(given.get("generator"), on_cpu=tensors and not back)
    _refuse(
        op,
        name,
        given,
        {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write},
    )
    if name in WAITS:
        _note("wait", name)
    if "out" in told and told["out"].dim() == 0:  # some reductions resize it twice, and warn
        told["out"] = told["out"].new_empty(0)
        back[id(told["out"])] = (told["out"], kwargs["out"])
    if generator is not None and "generator" in arguments:
        told["generator"], generator = generator, None
    result = op(**told) if generator is None else _lending(op, generator, told)
    for plain, x in back.values():
        if plain.shape != x.shape or (
            plain is told.get("out") and x.dim() == 0
        ):  # an output with memory of its own
            x.resize_(plain.shape)
            torch.ops.pretend.as_cpu(x).copy_(plain)
    return _each(result, _to_cuda, back)


def _copy(self, source, non_blocking=False):
    """copy_, the one operation between devices."""
    if self.is_cuda != source.is_cuda:
        _note(
            "host to device" if self.is_cuda else "device to host",
            f"{list(source.shape)} {str(source.dtype)[6:]}",
        )
    to, source = (torch.ops.pretend.as_cpu(x) if x.is_cuda else x for x in (self, source))
    to.copy_(source)
    return self


def _stored(storage, where):
    """Where torch.load puts a storage: None leaves it to the others that are registered."""
    if not str(where).startswith("cuda"):
        return None
    there = torch.empty(storage.nbytes(), dtype=torch.uint8, device="cuda")
    there.copy_(
        torch.empty(0, dtype=torch.uint8).set_(getattr(storage, "_untyped_storage", storage))
    )
    return there.untyped_storage()


def _patch_python():
    """What torch.cuda asks of C++ that was not compiled."""
    cuda, nothing = torch.cuda, lambda *a, **k: None
    card = types.SimpleNamespace(
        name="pretended",
        major=9,
        minor=0,
        total_memory=TOTAL,
        multi_processor_count=1,
        warp_size=32,
    )
    changed = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda d: torch.empty(
            0, device=torch.device("cuda", d) if isinstance(d, int) else d
        ),
        "is_bf16_supported": lambda *a, **k: True,
        "is_current_stream_capturing": lambda: False,
        "get_device_properties": lambda *a: card,
        "get_device_name": lambda *a: card.name,
        "get_device_capability": lambda *a: (9, 0),
        "synchronize": lambda *a: _note("wait", "synchronize"),
        "memory_allocated": lambda *a: torch.ops.pretend.memory(False)[0],
        "max_memory_allocated": lambda *a: torch.ops.pretend.memory(False)[1],
        "reset_peak_memory_stats": lambda *a: torch.ops.pretend.memory(True),
        "empty_cache": nothing,
        "mem_get_info": lambda *a: (TOTAL - torch.ops.pretend.memory(False)[0], TOTAL),
    }
    for module in [
        m for name, m in sys.modules.items() if name.startswith("torch.cuda")
    ]:  # some import one another's
        for name in changed.keys() & vars(module).keys():
            setattr(module, name, changed[name])
    cuda._lazy_init, cuda._initialized, cuda._is_in_bad_fork = nothing, True, lambda: False
    cuda.default_generators = (torch.ops.pretend.generator(),)
    cuda._exchange_device, cuda._maybe_exchange_device = (
        (lambda d: 0),
        (lambda d: 0),
    )  # dynamo wants two
    torch.serialization.register_package(15, nothing, _stored)


def _install():
    assert not torch.backends.cuda.is_built(), "pretend_cuda is for builds of PyTorch without CUDA"
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(on_device, "CUDA")
    aten.impl("copy_", _copy, "CUDA")
    aten.impl("_fused_sdp_choice", lambda *a, **k: 0, "CUDA")  # math
    for name in ("convolution", "convolution_backward"):  # their composites look for cudnn
        op = getattr(torch.ops.aten, name).default
        aten.impl(name, lambda *a, op=op, **k: on_device(op, *a, **k), "CUDA")
    _patch_python()
    if path := os.environ.get("PRETEND_CUDA_LOG"):
        atexit.register(
            lambda: Path(path).write_text(
                json.dumps({k: dict(v.most_common()) for k, v in seen.items()}, indent=1)
            )
        )
    return everything, aten  # what is registered lasts as long as these


_lent = _install()

if __name__ == "__main__":
    sys.modules["pretend_cuda"] = sys.modules["__main__"]
    del sys.argv[0]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
