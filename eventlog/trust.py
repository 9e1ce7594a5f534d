"""Which keys are believed, and whether the log is the one that the checkpoints were signed for.

Rule 1: a key is believed because the auditor brought it, or because a believed key, in force at that moment,
vouches for it in the log. Only when no key was brought, the log's first key is believed on its own word.
Rule 2: a checkpoint that the auditor kept counts as much as those in the file: the file's owner can leave
his out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from eventlog.checkpoint import Checkpoint, key_change, parse_checkpoint, verify_checkpoint
from eventlog.faults import Fault, FaultKind
from eventlog.note import NoteError, VerifyingKey
from eventlog.reading import StoredCheckpoint
from eventlog.record import Value


@dataclass(frozen=True, slots=True)
class _Claim:
    """A checkpoint that the log has to agree with. `row_size`: what stands beside one in the log's file."""

    label: str
    note: bytes
    row_size: int | None


class Trust:
    """Fed with key changes and roots in the records' order; then asked for faults."""

    def __init__(
        self, keys: Iterable[VerifyingKey], stored: Iterable[StoredCheckpoint], against: Sequence[bytes]
    ) -> None:
        self._brought = tuple(keys)
        self._accepted: list[tuple[int, VerifyingKey]] = []
        self._claims = [
            *(_Claim(f"checkpoint {at.number} in the file", at.note, at.size) for at in stored),
            *(
                _Claim(f"kept checkpoint {number}", note, None)
                for number, note in enumerate(against, start=1)
            ),
        ]
        self.sizes = frozenset(self._parsed_sizes())
        self.checked = 0
        self.protected = 0

    @property
    def keys(self) -> tuple[VerifyingKey, ...]:
        """Every key that is believed by now."""
        return tuple(dict.fromkeys((*self._brought, *(key for _, key in self._accepted))))

    def handle_key_change(self, position: int, fields: tuple[Value, ...]) -> Fault | None:
        """Take in a KEY_CHANGED record."""
        in_force = [self._accepted[-1][1]] if self._accepted else self._brought
        try:
            new, vouched = key_change(fields, in_force)
        except ValueError as error:
            return Fault(position, FaultKind.KEY, f"no key change: {error}")
        first_on_its_own_word = not self._brought and not self._accepted
        if not (vouched or new in self._brought or first_on_its_own_word):
            return Fault(position, FaultKind.KEY, f"nobody who is believed vouches for the new key {new}")
        self._accepted.append((position, new))
        return None

    def faults(self, roots: Mapping[int, bytes], size: int) -> Iterator[tuple[Fault, int]]:
        """What contradicts a checkpoint, each with the position up to which (not including) it can lie.

        `roots`: by size, made from the records; `size`: how many there are.
        """
        # The file's own checkpoints say nothing on how far a kept one's log was the same: a key can sign two.
        right_by_kept = right_by_any = 0
        faults: list[Fault] = []
        for claim, checkpoint in sorted(self._believed(faults), key=lambda pair: pair[1].size):
            self.checked += 1
            if checkpoint.size > size:
                wrong = f"over {checkpoint.size} records, the log has {size}: cut off, or put back"
                detail = f"{claim.label} is {wrong}"
                yield Fault(size, FaultKind.CHECKPOINT, detail), checkpoint.size
            elif roots.get(checkpoint.size) != checkpoint.root:
                detail = (
                    f"{claim.label} was signed over other records than stand up to {checkpoint.size - 1} now"
                )
                right = right_by_kept if claim.row_size is None else right_by_any
                position = max(0, min(right, checkpoint.size - 1))
                yield Fault(position, FaultKind.CHECKPOINT, detail), checkpoint.size
            else:
                right_by_any = checkpoint.size
                if claim.row_size is None:
                    right_by_kept = checkpoint.size
                if self.keys:
                    self.protected = checkpoint.size
        for fault in faults:
            yield fault, 0

    def _believed(self, faults: list[Fault]) -> Iterator[tuple[_Claim, Checkpoint]]:
        """The claims with a signature that counts; what is wrong with the others goes to `faults`."""
        for claim in self._claims:
            try:
                checkpoint, signer = self._verified(claim.note)
            except NoteError as error:
                faults.append(Fault(None, FaultKind.CHECKPOINT, f"{claim.label}: {error}"))
                continue
            if claim.row_size is not None and claim.row_size != checkpoint.size:
                detail = f"{claim.label} is over {checkpoint.size} records, beside it stands {claim.row_size}"
                faults.append(Fault(None, FaultKind.CHECKPOINT, detail))
            in_force = self._in_force(checkpoint.size)
            if signer is not None and in_force is not None and signer != in_force:
                detail = (
                    f"{claim.label} is signed by a key that was not in force over {checkpoint.size} records"
                )
                faults.append(Fault(None, FaultKind.KEY, detail))
                continue
            yield claim, checkpoint

    def _verified(self, note: bytes) -> tuple[Checkpoint, VerifyingKey | None]:
        if self.keys:
            return verify_checkpoint(note, self.keys)
        return parse_checkpoint(note), None  # Nobody can check signatures; sizes and roots still must agree.

    def _in_force(self, size: int) -> VerifyingKey | None:
        keys = [key for position, key in self._accepted if position < size]
        return keys[-1] if keys else None

    def _parsed_sizes(self) -> Iterator[int]:
        for claim in self._claims:
            try:
                yield parse_checkpoint(claim.note).size
            except NoteError:
                continue  # It is refused, by name, when its signature is looked at.
