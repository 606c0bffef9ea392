"""Vector operations for compiled loops: the value of one variable for a block of rows, in registers of the processor.

numba has no vector types, and LLVM's automatic vectorisation of the same loops depends on details such as the length of
a block. Each operation here emits the vector instructions of LLVM, which LLVM maps to what the processor has. All
operations are exact per lane: a product and a sum are rounded separately, and nothing is reordered.

A loop that uses these operations must check its offsets: as in all compiled loops, no bounds are checked.
"""

# ruff: noqa: ARG001 - numba reads the parameters of a typing function.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

# Rows of a block. 64 bytes are two AVX2 registers; 32 doubles are eight, whose additions overlap.
BYTES, DOUBLES = 64, 32

_BYTES = ir.VectorType(ir.IntType(8), BYTES)
_DOUBLES = ir.VectorType(ir.DoubleType(), DOUBLES)


class _Vector(types.Type):
    """The type of a vector in compiled code. It exists only inside a compiled function."""


_bytes_type, _doubles_type = _Vector(f"bytes{BYTES}"), _Vector(f"doubles{DOUBLES}")
_byte_array, _double_array = types.Array(types.uint8, 1, "C"), types.Array(types.float64, 1, "C")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: _Vector) -> None:
        super().__init__(manager, vector, _BYTES if vector is _bytes_type else _DOUBLES)  # type: ignore[no-untyped-call]


def _operation(typing_function: Callable[..., Any]) -> Any:
    """An operation of compiled code. numba calls `typing_function`, which gives types and emits instructions."""
    return intrinsic(typing_function)


def _splat(builder: Any, value: Any, vector: Any) -> Any:
    """A vector with `value` in each lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, undefined, lanes)


def _constant(value: float, vector: Any) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any, vector: Any) -> Any:
    """The address of element `at` of a one-dimensional array, as that of a vector."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())


@_operation
def all_bytes(_: Any, value: Any) -> Any:
    """A vector with the byte `value` in each lane."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0], _BYTES)

    return _bytes_type(types.uint8), emit


@_operation
def masked_above(_: Any, bits: Any, ranks: Any, at: Any, rank: Any, mask: Any) -> Any:
    """`bits`, and with `mask` where ``ranks[at + lane] > rank``."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, ranks, at, rank, mask = arguments
        row_ranks = builder.load(_pointer(context, builder, signature.args[1], ranks, at, _BYTES), align=1)
        below = builder.sext(builder.icmp_unsigned("<=", row_ranks, _splat(builder, rank, _BYTES)), _BYTES)
        return builder.and_(bits, builder.or_(below, _splat(builder, mask, _BYTES)))

    return _bytes_type(_bytes_type, _byte_array, types.int64, types.uint8, types.uint8), emit


@_operation
def where_nonzero(_: Any, condition: Any, chosen: Any, other: Any) -> Any:
    """`chosen` in the lanes where `condition` is not 0, `other` elsewhere."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        condition, chosen, other = arguments
        return builder.select(builder.icmp_unsigned("!=", condition, _constant(0, _BYTES)), chosen, other)

    return _bytes_type(_bytes_type, _bytes_type, _bytes_type), emit


@_operation
def plus_trailing_zeros(_: Any, start: Any, bits: Any) -> Any:
    """`start` plus the position of the lowest bit set in `bits`; at least one bit is set in each lane."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        start, bits = arguments
        kind = ir.FunctionType(_BYTES, [_BYTES, ir.IntType(1)])
        count = cgutils.get_or_insert_function(builder.module, kind, f"llvm.cttz.v{BYTES}i8")  # type: ignore[no-untyped-call]
        return builder.add(start, builder.call(count, [bits, ir.Constant(ir.IntType(1), 0)]))

    return _bytes_type(_bytes_type, _bytes_type), emit


@_operation
def store_bytes(_: Any, vector: Any, out: Any, at: Any) -> Any:
    """Write `vector` to ``out[at : at + BYTES]``."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, out, at = arguments
        builder.store(vector, _pointer(context, builder, signature.args[1], out, at, _BYTES), align=1)
        return context.get_dummy_value()

    return types.void(_bytes_type, _byte_array, types.int64), emit


@_operation
def all_doubles(_: Any, value: Any) -> Any:
    """A vector with the float64 `value` in each lane."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0], _DOUBLES)

    return _doubles_type(types.float64), emit


@_operation
def plus_product(_: Any, total: Any, factors: Any, at: Any, weight: Any) -> Any:
    """``total + factors[at + lane] * weight``, the product rounded before the sum."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, factors, at, weight = arguments
        values = builder.load(_pointer(context, builder, signature.args[1], factors, at, _DOUBLES), align=8)
        return builder.fadd(total, builder.fmul(values, _splat(builder, weight, _DOUBLES)))

    return _doubles_type(_doubles_type, _double_array, types.int64, types.float64), emit


@_operation
def negative_to_zero(_: Any, vector: Any) -> Any:
    """0 in the lanes below 0. NaN stays NaN."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        zero = _constant(0.0, _DOUBLES)
        return builder.select(builder.fcmp_ordered("<", arguments[0], zero), zero, arguments[0])

    return _doubles_type(_doubles_type), emit


@_operation
def store_doubles(_: Any, vector: Any, out: Any, at: Any) -> Any:
    """Write `vector` to ``out[at : at + DOUBLES]``."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, out, at = arguments
        builder.store(vector, _pointer(context, builder, signature.args[1], out, at, _DOUBLES), align=8)
        return context.get_dummy_value()

    return types.void(_doubles_type, _double_array, types.int64), emit
