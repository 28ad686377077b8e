"""How the model is compiled.

Passing a machine of two dozen arrays to each compiled function would take a hundred words, so a machine is passed as
one address: that of a table that holds each array's address and length. Compiled code reads `m.page[i].field` as if
`m` were a tuple of arrays. Measured on the 1 GiB regression, variant legacy, 120 simulated seconds took 0.9 s with a
tuple of arrays and 0.5 s with the address.

Each function is compiled for one signature: `Tables.parameters` states the types of parameters by their names. numba
would otherwise compile a function again for each combination of int32, int64 and literal arguments. A function is
compiled when it is first needed, under numba's own lock, so any number of threads may call it first. What Python calls
is cached on disk.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cache, update_wrapper
from hashlib import sha256
from importlib import import_module
from inspect import signature
from itertools import product
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, ClassVar, get_origin, get_type_hints

import numpy as np
from llvmlite import ir
from numba import extending, from_dtype, njit, typeof
from numba.core import config, event, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.errors import NumbaError
from numba.core.typing.templates import AttributeTemplate

from mmlab import variants

_WORD = ir.IntType(64)

# --- types ----------------------------------------------------------------------------------------------------------


class TableType(types.Type):  # type: ignore[misc]
    """numba's type of one array of a machine: a pointer to the array's address and length.

    Unlike numba's own arrays it does not check each index for being negative.
    """

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"Table({dtype})")


class MachineType(types.Type):  # type: ignore[misc]
    """numba's type of a machine; `tables` maps each attribute to its type.

    The type's name contains a digest of this package and of `mmlab.variants`, which keeps numba's cache on disk valid:
    numba itself compiles a function again only when the function's own file changes, not when one that it calls does.
    """

    def __init__(self, dtypes: dict[str, np.dtype]) -> None:
        self.tables = {name: TableType(from_dtype(dtype)) for name, dtype in dtypes.items()}
        files = [*sorted(Path(__file__).parent.glob("*.py")), Path(variants.__file__)]
        sources = b"".join(path.read_bytes() for path in files)
        super().__init__(name=f"Machine_{sha256(sources).hexdigest()[:16]}")


extending.register_model(MachineType)(extending.models.OpaqueModel)
extending.register_model(TableType)(extending.models.OpaqueModel)


@extending.infer_getattr
class _MachineAttributes(AttributeTemplate):  # type: ignore[misc]
    key = MachineType

    def generic_resolve(self, machine: MachineType, name: str) -> TableType | None:
        return machine.tables.get(name)


@extending.lower_getattr_generic(MachineType)
def _lower_table(context: Any, builder: Any, machine: MachineType, pointer: Any, name: str) -> Any:
    return builder.gep(pointer, [ir.Constant(_WORD, 16 * list(machine.tables).index(name))])


@extending.type_callable(operator.getitem)
def _type_getitem(context: Any) -> Any:
    return lambda table, index: table.dtype(table, types.int64) if isinstance(table, TableType) else None


@extending.type_callable(operator.setitem)
def _type_setitem(context: Any) -> Any:
    return lambda t, index, value: types.none(t, types.int64, t.dtype) if isinstance(t, TableType) else None


@extending.type_callable(len)
def _type_len(context: Any) -> Any:
    return lambda table: types.int64 if isinstance(table, TableType) else None


def _word(builder: Any, table: Any, slot: int) -> Any:
    """Return the table's address (slot 0) or length (slot 1); both are constant for the whole call."""
    load = builder.load(builder.gep(builder.bitcast(table, _WORD.as_pointer()), [ir.Constant(_WORD, slot)]))
    load.set_metadata("invariant.load", builder.module.add_metadata([]))
    return load


def _item(context: Any, builder: Any, table: TableType, pointer: Any, index: Any) -> Any:
    """Return the pointer to an element."""
    kind = context.get_data_type(table.dtype).as_pointer()
    return builder.gep(builder.inttoptr(_word(builder, pointer, 0), kind), [index], inbounds=True)


@extending.lower_builtin(operator.getitem, TableType, types.Integer)
def _lower_getitem(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return context.unpack_value(builder, sig.return_type, _item(context, builder, sig.args[0], *args))


@extending.lower_builtin(operator.setitem, TableType, types.Integer, types.Any)
def _lower_setitem(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    context.pack_value(builder, sig.args[2], args[2], _item(context, builder, sig.args[0], *args[:2]))
    return context.get_dummy_value()


@extending.lower_builtin(len, TableType)
def _lower_len(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return _word(builder, args[0], 1)


@extending.intrinsic
def words(context: Any, table: Any) -> Any:
    """Return an array of 8-byte records as an array of uint64; a record's first byte is the lowest of its word."""
    return TableType(types.uint64)(table), lambda context, builder, sig, args: args[0]


@extending.intrinsic
def trailing_zeros(context: Any, word: Any) -> Any:
    """Return the position of the lowest set bit of a uint64 other than 0."""
    return types.int64(types.uint64), lambda _, builder, sig, args: builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))


class Tables:
    """A machine: a subclass declares each array as `name: Annotated[np.ndarray, dtype, length]`.

    The constructor takes the lengths that are not declared (default 0). Assigning an array of the same dtype replaces
    one. `parameters` maps the names of compiled functions' parameters to their types: "m" is the machine, and a name
    that is not listed is an int64. A function with a parameter of several types is compiled for each of them.
    """

    parameters: ClassVar[dict[str, list[types.Type]]] = {}
    address: int
    _dtypes: ClassVar[dict[str, np.dtype]]
    _lengths: ClassVar[dict[str, int]]
    _numba_type_: ClassVar[MachineType]

    def __init_subclass__(cls) -> None:
        hints = get_type_hints(cls, include_extras=True).items()
        declared = {name: hint.__metadata__ for name, hint in hints if get_origin(hint) is Annotated}
        cls._dtypes = {name: dtype for name, (dtype, *_) in declared.items()}
        cls._lengths = {name: length[0] if length else 0 for name, (_, *length) in declared.items()}
        cls._numba_type_ = MachineType(cls._dtypes)  # numba looks here: 5 µs a call less than by `typeof_impl`
        cls.parameters["m"] = [cls._numba_type_]

    def __init__(self, **lengths: int) -> None:
        table = np.zeros(2 * len(self._dtypes), np.int64)
        self.__dict__.update(_table=table, address=int(table.ctypes.data))
        for name, dtype in self._dtypes.items():
            setattr(self, name, np.zeros(lengths.get(name, self._lengths[name]), dtype))

    def __setattr__(self, name: str, array: np.ndarray) -> None:
        slot = 2 * list(self._dtypes).index(name)
        self.__dict__["_table"][slot : slot + 2] = array.ctypes.data, len(array)
        self.__dict__[name] = array


@extending.unbox(MachineType)
def _unbox_machine(kind: MachineType, machine: Any, c: Any) -> Any:
    address = c.pyapi.object_getattr_string(machine, "address")
    value = c.pyapi.long_as_longlong(address)
    c.pyapi.decref(address)
    return extending.NativeValue(c.builder.inttoptr(value, ir.IntType(8).as_pointer()))


# --- compilation ----------------------------------------------------------------------------------------------------


class _PartCompiler(Compiler):  # type: ignore[misc]
    """The compiler of functions that only compiled functions call: it links them, but does not optimize or emit them.

    numba would optimize and emit each function with all that it calls, and do so again for every caller up to the
    function that Python calls. Compiling all of the model takes 24 s of CPU time this way and 34 s without
    it (cold, in turns). `pipeline_class` is numba's hook for this. It applies to the decorated
    function only: other code in the process is compiled as usual.
    """

    def compile_extra(self, function: Callable[..., Any]) -> Any:
        self.state.library = _Part(self.state.targetctx.codegen(), function.__qualname__)
        self.state.flags.no_compile = True
        result = super().compile_extra(function)
        key = result.library.__reduce__  # numba wants a built-in function to know it by; this one is never called
        self.state.targetctx.insert_user_function(key, result.fndesc, [result.library])
        return result._replace(entry_point=key)


class _Part(JITCodeLibrary):  # type: ignore[misc]
    def finalize(self) -> None:
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


_OPTIONS = {"error_model": "numpy", "nogil": True, "no_cfunc_wrapper": True, "_nrt": False}  # _nrt: reference counts


@cache
def _warn_uncached() -> None:
    """Warn once, whatever the filters of warnings do meanwhile."""
    text = "mmlab: the compiled model cannot be saved, so that every start compiles it again (about 20 s). "
    text += "Set NUMBA_CACHE_DIR to a folder that can be written."
    warnings.warn(text, RuntimeWarning, stacklevel=4)


class Function:
    """A function of the model; it is compiled when Python first calls it or when a caller of it is compiled."""

    entries: ClassVar[list[Function]] = []

    def __init__(self, function: Callable[..., Any], **options: object) -> None:
        update_wrapper(self, function)
        self.function = function
        self.options = _OPTIONS | options
        self.ready: Any = None

    def __call__(self, *args: Any) -> Any:
        return (self.ready or self.compile())(*args)

    def compile(self) -> Any:
        """Return numba's compiled function; compile it first if need be."""
        with global_compiler_lock:
            if self.ready is None:
                self.ready = self._cached() if self in self.entries else self._specialized(self._dispatcher())
            return self.ready

    def _dispatcher(self) -> Any:
        return njit(**self.options)(self.function)

    def _specialized(self, dispatcher: Any) -> Any:
        """Compile for the declared types and for no others: numba converts arguments to them."""
        if not dispatcher.signatures:
            parameters = signature(self.function).parameters
            for kinds in product(*(Tables.parameters.get(name, [types.int64]) for name in parameters)):
                dispatcher.compile(kinds)
        dispatcher.disable_compile()
        return dispatcher

    def _cached(self) -> Any:
        """Load the function from numba's cache on disk, or compile it; a cached file that cannot be loaded goes."""
        for _ in range(2):
            dispatcher = self._dispatcher()
            try:
                if not config.CACHE_DIR:
                    Path.home()  # raises where there is none: numba would create a folder "~" here
                dispatcher.enable_caching()
                return self._specialized(dispatcher)
            except NumbaError:
                raise
            except Exception:
                if dispatcher.signatures:  # compiled, but not saved
                    break
                with suppress(OSError):
                    dispatcher.recompile()  # empties the function's cache
        else:
            dispatcher = self._dispatcher()
        _warn_uncached()
        return self._specialized(dispatcher)


@extending.typeof_impl.register(Function)
def _typeof_function(function: Function, context: Any) -> Any:
    return typeof(function.compile())


def compiled(function: Callable[..., Any]) -> Function:
    """Compile a function of the model that only other compiled functions call."""
    return Function(function, pipeline_class=_PartCompiler, no_cpython_wrapper=True)


def seldom(table: str, function: Function) -> Any:
    """Return what an intrinsic returns that calls a function of no result, which never fails, if a table has rows.

    The table is one of the machine, the first parameter. Code around the call is compiled as if that never happened:
    an ordinary call of such a function, not taken, cost up to 15 % of a run.
    """
    called = next(iter(function.compile().overloads.values()))

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        rows = _word(builder, _lower_table(context, builder, sig.args[0], args[0], table), 1)
        with builder.if_then(builder.icmp_signed(">", rows, ir.Constant(_WORD, 0)), likely=False):
            context.active_code_library.add_linking_library(called.library)
            context.call_internal_no_propagate(builder, called.fndesc, sig, args)
        return context.get_dummy_value()

    return types.none(*called.signature.args), lower


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function into its only caller where a call for each page would be expensive (10 to 20 % of a run)."""
    return njit(inline="always", **_OPTIONS)(function)


def entry(function: Callable[..., Any]) -> Function:
    """Compile a function of the model that Python calls too; it is cached on disk, with all that it calls."""
    Function.entries.append(Function(function))
    return Function.entries[-1]


def warm_up() -> None:
    """Compile all of the model, or load it from the cache on disk."""
    for module in iter_modules([str(Path(__file__).parent)]):
        import_module(f"{__package__}.{module.name}")
    for function in Function.entries:
        function.compile()


class _Announcer(event.Listener):  # type: ignore[misc]
    def __init__(self, say: Callable[[str], object]) -> None:
        self.say: Callable[[str], object] | None = say

    def on_start(self, event: Any) -> None:
        if self.say:
            self.say("mmlab: compiling the model (about 20 s, once after each installation) …")
            self.say = None

    def on_end(self, event: Any) -> None:
        pass


def announced(say: Callable[[str], object]) -> AbstractContextManager[None]:
    """Announce the first compilation within a `with` block through `say`, in the thread that compiles."""
    found: AbstractContextManager[None] = event.install_listener("numba:compile", _Announcer(say))
    return found
