"""The state of a block: registers of all its threads, its memories, and how instructions reach them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sass_simulator.accesses import LANES, Array, Patterns
from sass_simulator.clusters import Cluster, Mbarrier, Phase
from sass_simulator.instruction import Instruction
from sass_simulator.kernel import Kernel

Mask = NDArray[np.bool_] | None  # which threads an instruction is for; None: all
Fetch = Callable[[], Any]  # an operand: a value for each thread, or one for all
Put = Callable[[Any, Mask], None]  # stores a result for the threads of a mask
GLOBAL_BASE = 0x7F0000000000
SHARED_WINDOW = 0x7E00  # the upper half of generic addresses of shared memory
ZERO = 255  # the index of RZ and URZ
TRUE = 7  # the index of PT and UPT


class SimulationError(Exception):
    """An instruction that the simulator does not know, or that a GPU would have refused."""

    def __init__(self, instruction: Instruction, why: str) -> None:
        super().__init__(f"{instruction}: {why}")


class Memory:
    """Global memory. Addresses are integers, as kernels get them; a margin round each array is nobody's."""

    MARGIN = 512

    def __init__(self) -> None:
        self.bytes: NDArray[np.uint8] = np.zeros(self.MARGIN, np.uint8)
        self.owned: NDArray[np.bool_] = np.zeros(
            self.MARGIN, np.bool_
        )  # of each 4 bytes, whether they are somebody's

    def place(self, content: bytes | int | Array) -> int:
        """Puts bytes, an array or that many zeros at an address that is a multiple of 512."""
        if isinstance(content, int):
            data = np.zeros(content, np.uint8)
        elif isinstance(content, bytes):
            data = np.frombuffer(content, np.uint8)
        else:
            data = np.ascontiguousarray(content).view(np.uint8).reshape(-1)
        at = self.bytes.size
        padded = -(-data.size // self.MARGIN) * self.MARGIN + self.MARGIN
        self.bytes = np.concatenate([self.bytes, np.zeros(padded, np.uint8)])
        self.bytes[at : at + data.size] = data
        if self.owned.size * 4 < self.bytes.size:
            self.owned = np.concatenate(
                [self.owned, np.zeros(self.bytes.size // 4 - self.owned.size, np.bool_)]
            )
        self.owned[at // 4 : (at + data.size + 3) // 4] = True
        return GLOBAL_BASE + at

    def read(self, address: int, count: int, dtype: Any) -> Array:
        at = address - GLOBAL_BASE
        return self.bytes[at : at + count * np.dtype(dtype).itemsize].view(dtype).copy()

    def write(self, address: int, values: Array) -> None:
        data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        self.bytes[address - GLOBAL_BASE : address - GLOBAL_BASE + data.size] = data


@dataclass
class Group:
    """Threads that are at the same instruction."""

    mask: Mask
    whole: NDArray[np.bool_]  # the mask, also where it is None
    warps: list[int]
    wide: Mask  # all threads of these warps: what instructions of the uniform datapath are for


@dataclass
class Machine:
    """A block on a multiprocessor. Registers are [register, thread]; uniform ones too: the same in a whole warp."""

    kernel: Kernel
    memory: Memory
    threads: int
    block: tuple[int, int, int]
    blocks: tuple[int, int, int]
    shape: tuple[int, int, int]  # of the block: threads in x, y, z
    parameters: bytes
    shared_size: int  # bytes
    infos: list[list[Any]] = field(
        default_factory=list
    )  # per warp: what memory instructions asked for, in order
    cluster: Cluster[Machine] = field(default_factory=Cluster)  # which it joins, with the next rank

    def __post_init__(self) -> None:
        if self.threads % LANES or int(np.prod(self.shape)) != self.threads:
            raise ValueError(f"{self.threads} threads are no whole warps of shape {self.shape}")
        if len(self.parameters) != self.kernel.parameter_bytes:
            raise ValueError(f"{self.kernel.parameter_bytes} bytes of parameters, got {len(self.parameters)}")
        n = self.threads
        self.warps = n // LANES
        self.files = {"R": np.zeros((256, n), np.uint32), "UR": np.zeros((256, n), np.uint32)}
        self.predicates = {"P": np.zeros((8, n), np.bool_), "UP": np.zeros((8, n), np.bool_)}
        for file in self.predicates.values():
            file[TRUE] = True
        self.shared = np.zeros(self.shared_size, np.uint8)
        self.local = np.zeros((n, max(self.kernel.local_bytes, 16)), np.uint8)
        self.lane = np.arange(n, dtype=np.uint32) % LANES
        self.first_lane = np.arange(n) // LANES * LANES  # index of the first thread of each thread's warp
        self.infos = [[] for _ in range(self.warps)]
        self.rank = self.cluster.join(self, self.threads)
        self.mbarriers: dict[int, Mbarrier] = {}  # by their address in the cluster
        self.joined: list[Phase | None] = [
            None
        ] * self.warps  # at which phase of the cluster's barrier each came last
        self.banks, self.known = self._banks()
        self.patterns = Patterns()
        # Of each warp: copies that it has begun, and groups of them, by scoreboard, that it has not waited for.
        self.copies: list[list[Callable[[], None]]] = [[] for _ in range(self.warps)]
        self.groups = [defaultdict[int, list[list[Callable[[], None]]]](list) for _ in range(self.warps)]
        self._groups: dict[bytes, Group] = {}

    def _banks(self) -> tuple[dict[int, NDArray[np.uint8]], NDArray[np.bool_]]:
        """Constants, and which bytes of bank 0 are known."""
        at = self.kernel.parameters_at
        bank = np.zeros(max(at + len(self.parameters), 1024) + 16, np.uint8)
        known = np.zeros(bank.size, np.bool_)

        def put(offset: int, values: bytes) -> None:
            bank[offset : offset + len(values)] = np.frombuffer(values, np.uint8)
            known[offset : offset + len(values)] = True

        shape, blocks = (np.array(v, np.uint32).tobytes() for v in (self.shape, self.blocks))
        new = self.kernel.arch >= 100
        put(0x360 if new else 0x0, shape)
        put(0x370 if new else 0xC, blocks)
        put(
            0x37C if new else 0x28, int(self.kernel.local_bytes).to_bytes(4, "little")
        )  # R1 begins at the top
        put(
            {8: 0x118, 9: 0x208}.get(self.kernel.arch // 10, 0x358), bytes(8)
        )  # describes global memory: no effect
        if self.kernel.arch >= 90:  # whether there are clusters, their shape, one over its x, their blocks
            size = self.cluster.size
            put(0x36C if new else 0x140, int(size > 1).to_bytes(4, "little"))
            put(0x2A0 if new else 0x144, np.array([size, 1, 1], np.uint32).tobytes())
            put(0x2B0 if new else 0x150, np.float32(1 / size).tobytes())
            put(0x2CC if new else 0x188, size.to_bytes(4, "little"))
        put(at, self.parameters)
        # Pointers to parameters are generic: a copy in global memory stands for them.
        window = self.memory.place(bank)
        if self.kernel.arch < 90:
            put(0x18, (SHARED_WINDOW << 32).to_bytes(8, "little"))
            put(0x40, window.to_bytes(8, "little"))
        else:
            put(0x348 if new else 0x198, (window + at).to_bytes(8, "little"))
        banks = {0: bank}
        for number, data in self.kernel.constants.items():
            banks[number] = np.frombuffer(data + bytes(16), np.uint8).copy()
        return banks, known

    # -- groups of threads

    def group(self, mask: NDArray[np.bool_]) -> Group:
        key = mask.tobytes()
        if key not in self._groups:
            by_warp = mask.reshape(-1, LANES).any(1)
            wide = np.repeat(by_warp, LANES)
            self._groups[key] = Group(
                None if mask.all() else mask,
                mask,
                np.flatnonzero(by_warp).tolist(),
                None if wide.all() else wide,
            )
        return self._groups[key]

    # -- operands. All forms: -R1, |R1|, ~R1, c[0x0][0x10], 0x10, UR4, !P0

    def u32(self, i: Instruction, text: str) -> Fetch:
        text, negative, inverted = _signs(text)
        if row := self._row(text):
            file, n = row
            values = self.files[file][n]
            if negative:
                return lambda: np.uint32(0) - values
            return (lambda: ~values) if inverted else (lambda: values)
        if text.startswith("c["):
            fetch = self.constant(i, text, 4)
            if negative:
                return lambda: np.uint32(0) - fetch()
            return (lambda: ~fetch()) if inverted else fetch
        number = int(text, 16)
        number = ~number if inverted else -number if negative else number
        value = np.uint32(number & 0xFFFFFFFF)
        return lambda: value

    def s32(self, i: Instruction, text: str) -> Fetch:
        fetch = self.u32(i, text)
        return lambda: fetch().view(np.int32)

    def u64(self, i: Instruction, text: str) -> Fetch:
        """A pair of registers, a sign-extended immediate, or eight bytes of constants."""
        text, negative, inverted = _signs(text)
        if row := self._row(text):
            file, n = row
            low, high = self.files[file][n], self.files[file][n if n == ZERO else n + 1]
            pair = lambda: low | high.astype(np.uint64) << np.uint64(32)  # noqa: E731
        elif text.startswith("c["):
            pair = self.constant(i, text, 8)
        else:
            number = np.uint64(int(text, 16) & 0xFFFFFFFFFFFFFFFF)
            pair = lambda: number  # noqa: E731
        if negative:
            return lambda: np.uint64(0) - pair()
        return (lambda: ~pair()) if inverted else pair

    def f32(self, i: Instruction, text: str) -> Fetch:
        text, negative, absolute = _float_signs(text)
        if row := self._row(text):
            file, n = row
            values = self.files[file][n].view(np.float32)
            fetch: Fetch = lambda: values  # noqa: E731
        elif text.startswith("c["):
            bits = self.constant(i, text, 4)
            fetch = lambda: bits().view(np.float32)  # noqa: E731
        else:  # its sign is among the immediate's bits
            number = np.uint32(i.immediate).view(np.float32)
            return lambda: number
        return _signed(fetch, negative, absolute)

    def f64(self, i: Instruction, text: str) -> Fetch:
        text, negative, absolute = _float_signs(text)
        if self._row(text) or text.startswith("c["):
            bits = self.u64(i, text)
            return _signed(lambda: bits().view(np.float64), negative, absolute)
        number = np.uint64(i.immediate << 32).view(np.float64)
        return lambda: number

    def f16(self, i: Instruction, text: str) -> Fetch:
        """Two numbers, [2, threads], as float32. H0_H0 and H1_H1: twice the same one."""
        half = re.search(r"\.(H\d_H\d|F32)$", text)
        text, negative, absolute = _float_signs(re.sub(r"\.(H\d_H\d|F32)$", "", text))
        if re.match(r"U?R[\dZ]|c\[", text):
            bits = self.u32(i, text)
        else:
            number = np.uint32(i.immediate)
            bits = lambda: number  # noqa: E731
            negative = absolute = False
        first, second = {"H0_H0": (0, 0), "H1_H1": (16, 16)}.get(half[1] if half else "", (0, 16))

        def fetch() -> Any:
            both = bits()
            parts = [
                (both >> np.uint32(shift)).astype(np.uint16).view(np.float16) for shift in (first, second)
            ]
            return np.stack(parts).reshape(2, -1).astype(np.float32)

        return _signed(fetch, negative, absolute)

    def predicate(self, text: str) -> Fetch:
        name = text.lstrip("!")
        file = name.rstrip("T0123456789")
        row = self.predicates[file][TRUE if name.endswith("T") else int(name[len(file) :])]
        return (lambda: ~row) if text.startswith("!") else (lambda: row)

    def constant(self, i: Instruction, text: str, size: int) -> Fetch:
        """``c[bank][register + offset]``, a number of 1, 2, 4 or 8 bytes, unsigned."""
        found = re.match(r"c\[0x(\w+)\]\[(?:(U?R[\dZ]+)\+?)?(-?0x\w+)?\]$", text)
        if found is None:
            raise SimulationError(i, f"no constant: {text}")
        bank, offset = int(found[1], 16), int(found[3] or "0", 16)
        dtype = np.dtype(f"<u{size}")
        data = self.banks.get(bank)
        if data is None:
            raise SimulationError(i, f"the cubin has no constant bank {bank}")
        if found[2] is None:
            if bank == 0 and not self.known[offset : offset + size].all():

                def unknown() -> Any:
                    raise SimulationError(i, "what lies in the constant bank there is not known")

                return unknown
            value = data[offset : offset + size].copy().view(dtype)[0]
            return lambda: value
        index = self.u32(i, found[2])

        def fetch() -> Any:
            at = index().astype(np.int64) + offset
            at = np.where((at < 0) | (at > data.size - size), 0, at)  # of threads that are not asked
            return np.ascontiguousarray(data[at[:, None] + np.arange(size)]).view(dtype)[:, 0]

        return fetch

    def _row(self, text: str) -> tuple[str, int] | None:
        found = re.match(r"(U?R)(\d+|Z)(?:\.64)?$", text)
        return (found[1], ZERO if found[2] == "Z" else int(found[2])) if found else None

    # -- results

    def put_u32(self, text: str) -> Put:
        file, n = self._row(text) or ("R", ZERO)
        if n == ZERO:
            return _discard
        return _put_to(self.files[file][n])

    def put_f32(self, text: str) -> Put:
        file, n = self._row(text) or ("R", ZERO)
        if n == ZERO:
            return _discard
        return _put_to(self.files[file][n].view(np.float32))

    def put_u64(self, text: str) -> Put:
        file, n = self._row(text) or ("R", ZERO)
        if n == ZERO:
            return _discard
        low, high = _put_to(self.files[file][n]), _put_to(self.files[file][n + 1])

        def put(value: Any, mask: Mask) -> None:
            low(value.astype(np.uint32), mask)
            high((value >> np.uint64(32)).astype(np.uint32), mask)

        return put

    def put_f64(self, text: str) -> Put:
        put = self.put_u64(text)
        return lambda value, mask: put(value.view(np.uint64), mask)

    def put_words(self, text: str) -> Put:
        """Several registers from this one on: [words, threads]."""
        file, n = self._row(text) or ("R", ZERO)
        if n == ZERO:
            return _discard
        rows = self.files[file]

        def put(value: Any, mask: Mask) -> None:
            target = rows[n : n + len(value)]
            if mask is None:
                target[:] = value
            else:
                np.copyto(target, value, where=mask)

        return put

    def words(self, text: str, count: int) -> Fetch:
        """Several registers from this one on, [words, threads]."""
        file, n = self._row(text) or ("R", ZERO)
        if n == ZERO:
            zeros = np.zeros((count, self.threads), np.uint32)
            return lambda: zeros
        rows = self.files[file][n : n + count]
        return lambda: rows

    def put_predicate(self, text: str) -> Put:
        file = text.rstrip("T0123456789")
        if text.endswith("T"):
            return _discard
        return _put_to(self.predicates[file][int(text[len(file) :])])


def _discard(value: Any, mask: Mask) -> None:
    pass


def _put_to(row: Array) -> Put:
    def put(value: Any, mask: Mask) -> None:
        if mask is None:
            row[:] = value
        else:
            np.copyto(row, value, where=mask)

    return put


def _signs(text: str) -> tuple[str, bool, bool]:
    """Without its sign, whether it was -, whether it was ~."""
    return text.lstrip("-~"), text.startswith("-"), text.startswith("~")


def _float_signs(text: str) -> tuple[str, bool, bool]:
    """Without its signs, whether it is negated, whether its absolute value is taken first."""
    negative = text.startswith("-")
    absolute = text.lstrip("-").startswith("|")
    return text.lstrip("-").strip("|"), negative, absolute


def _signed(fetch: Fetch, negative: bool, absolute: bool) -> Fetch:
    if absolute and negative:
        return lambda: -np.abs(fetch())
    if absolute:
        return lambda: np.abs(fetch())
    return (lambda: -fetch()) if negative else fetch
