"""aitext: whether a document was probably written by a machine: triage, with a measured rate of false alarms, not proof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from upslope.config import Input, Source, Wants
from upslope.data.annotators.classify import loaded, resolved
from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa

    from upslope.machine.context import Context


class AiText(Annotate):
    """score: probability at equal priors, from the text; posterior: with the prior of its date (0 before the cutoff); flagged: the score
    is above the threshold and the page is not from before the cutoff; before: it is; ngrams, ratio, phrases: the signals.

    classifier: a stage of kind `classifier`, form `aitext`, or a folder that one made. Its card says how often human pages are flagged.
    """

    kind: ClassVar[str] = "aitext"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {
        "score": "float32",
        "posterior": "float32",
        "flagged": "bool",
        "before": "bool",
        "ngrams": "float32",
        "ratio": "float32",
        "phrases": "float32",
    }

    classifier: Annotated[Input | Source, Wants("Classifier")]

    def bind(self, ctx: Context) -> Annotate:
        """The step that reads the classifier's files, of which it knows the digest. UsageError if it is of another form."""
        return BoundAiText(name=self.column, classifier=resolved(ctx, self.classifier, "aitext"))


class BoundAiText(Annotate):
    """`AiText` with its classifier.json."""

    kind: ClassVar[str] = "aitext_file"
    version: ClassVar[int] = AiText.version
    gives: ClassVar[Mapping[str, str]] = AiText.gives

    classifier: Source

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the columns text and date."""
        import pyarrow as pa

        found = loaded(self.classifier).detector.read(batch["text"], batch["date"].to_pylist())
        return pa.RecordBatch.from_pydict({n: pa.array(found[n], pa.type_for_alias(t)) for n, t in self.gives.items()})
