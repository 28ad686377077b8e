"""How the model is compiled.

A machine of a dozen arrays would be passed to each compiled function as a hundred words; here it is one address, of a
table that holds each array's address and length. Compiled code reads `m.page[i].field` as if `m` were a tuple of
arrays.

Measured on the 1 GiB regression, variant legacy: 30 simulated seconds took 14 s as a tuple of arrays with numba's
reference counts and 0.4 s without them; 120 simulated seconds then went from 0.9 to 0.5 s with one address in place of
the tuple. The cold compile fell to less than half.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_origin, get_type_hints

import numpy as np
from llvmlite import ir
from numba._dynfunc import make_function
from numba.core import event, types
from numba.core.cgutils import raw_memcpy
from numba.core.codegen import CPUCodeLibrary
from numba.core.cpu import CPUContext
from numba.core.datamodel import models, register_default
from numba.core.registry import CPUDispatcher
from numba.core.types.misc import unliteral
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_global
from numba.extending import NativeValue, infer_getattr, intrinsic, lower_builtin, lower_getattr_generic, unbox
from numba.np.numpy_support import from_dtype

__all__ = ["Tables", "announced", "compiled", "entry", "get_word", "inlined", "set_word", "trailing_zeros"]

_INT64 = ir.IntType(64)


class TableType(types.Type):  # type: ignore[misc]
    """numba's type of one array of a machine: an address of its address and length.

    Unlike numba's own arrays it does not ask of each index whether it is negative.
    """

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"Table({dtype})")


class MachineType(types.Type):  # type: ignore[misc]
    """numba's type of a machine; `tables` maps each attribute to its type."""

    def __init__(self, tables: Mapping[str, TableType]) -> None:
        self.tables = dict(tables)
        super().__init__(name=f"Machine_{_sources_digest()}")


def _sources_digest() -> str:
    """Changes with any file of this package. As part of the type's name it keeps numba's cache on disk true: numba
    itself compiles a function anew only when the function's own file changes, not when one that it calls does."""
    digest = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@register_default(MachineType)
@register_default(TableType)
class _Address(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _INT64)


@infer_getattr
class _MachineAttributes(AttributeTemplate):  # type: ignore[misc]
    key = MachineType

    def generic_resolve(self, typ: MachineType, attr: str) -> TableType | None:
        return typ.tables.get(attr)


@lower_getattr_generic(MachineType)
def _lower_table(context: Any, builder: Any, typ: MachineType, address: Any, attr: str) -> Any:
    return builder.add(address, ir.Constant(_INT64, 16 * list(typ.tables).index(attr)))


@infer_global(operator.getitem)
class _GetItem(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        if isinstance(args[0], TableType) and isinstance(args[1], types.Integer):
            return signature(args[0].dtype, args[0], types.int64)
        return None


@infer_global(operator.setitem)
class _SetItem(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        if isinstance(args[0], TableType) and isinstance(args[1], types.Integer):
            return signature(types.none, args[0], types.int64, args[0].dtype)
        return None


@infer_global(len)
class _Len(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        return signature(types.int64, args[0]) if isinstance(args[0], TableType) else None


def _word(builder: Any, table: Any, slot: int) -> Any:
    """The table's address (0) or length (1); both are constant for the whole call."""
    pointer = builder.inttoptr(builder.add(table, ir.Constant(_INT64, 8 * slot)), _INT64.as_pointer())
    load = builder.load(pointer)
    load.set_metadata("invariant.load", builder.module.add_metadata([]))
    return load


def _item(context: Any, builder: Any, typ: TableType, table: Any, index: Any) -> Any:
    """Pointer to an element."""
    size = ir.Constant(_INT64, context.get_abi_sizeof(context.get_data_type(typ.dtype)))
    if isinstance(typ.dtype, types.Record):
        size = ir.Constant(_INT64, typ.dtype.size)
    start = builder.inttoptr(_word(builder, table, 0), ir.IntType(8).as_pointer())
    return builder.gep(start, [builder.mul(index, size)], inbounds=True)


@lower_builtin(operator.getitem, TableType, types.Integer)
def _lower_getitem(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    pointer = _item(context, builder, sig.args[0], *args)
    kind = context.get_value_type(sig.return_type)
    if isinstance(sig.return_type, types.Record):  # numba holds a record by its address
        return builder.bitcast(pointer, kind)
    return builder.load(builder.bitcast(pointer, kind.as_pointer()))


@lower_builtin(operator.setitem, TableType, types.Integer, types.Any)
def _lower_setitem(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    table, index, value = args
    pointer = _item(context, builder, sig.args[0], table, index)
    if isinstance(sig.args[2], types.Record):
        raw_memcpy(builder, pointer, value, ir.Constant(_INT64, sig.args[2].size), ir.Constant(_INT64, 1))
    else:
        builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    return context.get_dummy_value()


@lower_builtin(len, TableType)
def _lower_len(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return _word(builder, args[0], 1)


@unbox(MachineType)
def _unbox_machine(typ: MachineType, machine: Any, c: Any) -> NativeValue:
    address = c.pyapi.object_getattr_string(machine, "address")
    value = c.pyapi.long_as_longlong(address)
    c.pyapi.decref(address)
    return NativeValue(value)


@intrinsic
def trailing_zeros(context: Any, word: Any) -> Any:
    """Position of the lowest bit that is set in a uint64 other than 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@intrinsic
def get_word(context: Any, table: Any, index: Any) -> Any:
    """A record of 8 bytes as a uint64, its first byte the lowest."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _item(context, builder, signature.args[0], *args)
        return builder.load(builder.bitcast(pointer, _INT64.as_pointer()))

    return types.uint64(table, types.int64), codegen


@intrinsic
def set_word(context: Any, table: Any, index: Any, word: Any) -> Any:
    """… and back."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _item(context, builder, signature.args[0], *args[:2])
        builder.store(args[2], builder.bitcast(pointer, _INT64.as_pointer()))
        return context.get_dummy_value()

    return types.none(table, types.int64, types.uint64), codegen


class Tables:
    """A machine: a subclass declares each array as `name: Annotated[np.ndarray, dtype]`.

    It is made with the arrays' lengths (0 when left out). An array is replaced by assigning another one of its dtype.
    """

    _numba_type_: ClassVar[MachineType]
    address: int

    def __init_subclass__(cls) -> None:
        hints = get_type_hints(cls, include_extras=True).items()
        cls._dtypes = {name: hint.__metadata__[0] for name, hint in hints if get_origin(hint) is Annotated}
        cls._numba_type_ = MachineType({name: TableType(from_dtype(t)) for name, t in cls._dtypes.items()})

    _dtypes: ClassVar[dict[str, np.dtype]]

    def __init__(self, **lengths: int) -> None:
        table = np.zeros(2 * len(self._dtypes), np.int64)
        self.__dict__.update(_table=table, address=int(table.ctypes.data))
        for name, dtype in self._dtypes.items():
            setattr(self, name, np.zeros(lengths.get(name, 0), dtype))

    def __setattr__(self, name: str, array: np.ndarray) -> None:
        slot = 2 * list(self._dtypes).index(name)
        self.__dict__["_table"][slot : slot + 2] = array.ctypes.data, len(array)
        self.__dict__[name] = array


_compiling: list[bool] = []
"""For each function that numba is in the middle of compiling, the innermost last: is it one of many parts?"""


def _finalize(library: CPUCodeLibrary) -> None:
    """Link a function with those that it calls; of a part do no more.

    numba would optimize each part with all that it calls, and emit machine code for it, which is done again for every
    caller up to the function that Python calls. Done only there, the cold compile takes half the time.
    """
    if not getattr(library, "is_part", False):
        _numba_finalize(library)
        return
    for other in dict.fromkeys(library._linking_libraries):
        library._final_module.link_in(other._get_module_for_linking(), preserve=True)
    library._finalized = True


def _get_executable(context: CPUContext, library: CPUCodeLibrary, fndesc: Any, env: Any) -> Any:
    """What numba knows a compiled function by; a part cannot be called from Python and has no address."""
    if not (_compiling and _compiling[-1]):
        return _numba_get_executable(context, library, fndesc, env)
    library.is_part = True
    name = fndesc.qualname.split(".")[-1]
    return make_function(fndesc.lookup_module(), name, name, 0, env, (library,))


_numba_finalize, CPUCodeLibrary.finalize = CPUCodeLibrary.finalize, _finalize
_numba_get_executable, CPUContext.get_executable = CPUContext.get_executable, _get_executable


class _OneSignature(CPUDispatcher):  # type: ignore[misc]
    """Compiles a function once: every integer argument is an int64, whatever field or constant it comes from.

    numba would compile it anew for an int32 from a record, an int64 and a literal, which triples the cold start.
    """

    def compile(self, sig: Any) -> Any:
        _compiling.append("no_cpython_wrapper" in self.targetoptions)
        try:
            return super().compile(sig)
        finally:
            _compiling.pop()

    def get_call_template(self, args: Any, kws: Any) -> Any:
        return super().get_call_template(tuple(map(self._wide, args)), kws)

    @staticmethod
    def _wide(arg: Any) -> Any:
        plain = unliteral(arg)
        return types.int64 if isinstance(plain, types.Integer) and plain is not types.uint64 else plain


def _compiled(function: Callable[..., Any], **options: object) -> _OneSignature:
    # without numba's reference counts (_nrt): the model never allocates in compiled code
    dispatcher = _OneSignature(
        function, targetoptions={"nopython": True, "error_model": "numpy", "_nrt": False, "nogil": True, **options}
    )
    if "no_cpython_wrapper" not in options:  # what Python calls is cached on disk, with all that it calls
        dispatcher.enable_caching()
    return dispatcher


class _OnCompilation(event.Listener):  # type: ignore[misc]
    """Says so once when numba begins to compile, because its cache on disk has nothing."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say: Callable[[str], object] | None = say

    def on_start(self, event: Any) -> None:
        if self.say:
            self.say("mmlab: compiling the model (about 20 s, once after each installation) …")
            self.say = None

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def announced(say: Callable[[str], object]) -> Iterator[None]:
    """Within this context the first compilation is announced through `say`."""
    with event.install_listener("numba:compile", _OnCompilation(say)):
        yield


def compiled(function: Callable[..., Any]) -> _OneSignature:
    """Compile a function of the model that only other compiled functions call."""
    return _compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def inlined(function: Callable[..., Any]) -> _OneSignature:
    """Compile a function into its only caller, where a call for each page would be dear (10 to 20 % of a run)."""
    return _compiled(function, inline="always", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def entry(function: Callable[..., Any]) -> _OneSignature:
    """Compile a function of the model that Python calls too."""
    return _compiled(function, no_cfunc_wrapper=True)
