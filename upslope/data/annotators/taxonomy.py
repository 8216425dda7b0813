"""taxonomy: the codes that a trained student gives a document in the twelve fields of `classify.taxonomy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from upslope.config import Input, Source, Wants
from upslope.data.annotators.classify import loaded, resolved
from upslope.data.classify.taxonomy import ABSTAIN, FIELDS, LEVELS
from upslope.data.protocol import Annotate

if TYPE_CHECKING:
    import pyarrow as pa

    from upslope.machine.context import Context


class Taxonomy(Annotate):
    """FIELD: the primary code, FIELD_2: the secondary code, FIELD_p: the probability of the primary one. NULL where the student abstains,
    was not taught the field, or the text has no features. Codes of fdc fields are strings, since their zeros count; others numbers.

    classifier: a stage of kind `classifier`, form `taxonomy`, or a folder that one made.
    """

    kind: ClassVar[str] = "taxonomy"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {
        f"{field}{part}": kind
        for field in FIELDS
        for part, kind in zip(("", "_2", "_p"), (*(("string" if field in LEVELS else "int32"),) * 2, "float32"))
    }

    classifier: Annotated[Input | Source, Wants("Classifier")]

    def bind(self, ctx: Context) -> Annotate:
        """The step that reads the classifier's files, of which it knows the digest. UsageError if it is of another form."""
        return BoundTaxonomy(name=self.column, classifier=resolved(ctx, self.classifier, "taxonomy"))


class BoundTaxonomy(Annotate):
    """`Taxonomy` with its classifier.json."""

    kind: ClassVar[str] = "taxonomy_file"
    version: ClassVar[int] = Taxonomy.version
    gives: ClassVar[Mapping[str, str]] = Taxonomy.gives

    classifier: Source

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the column text."""
        import numpy as np
        import pyarrow as pa

        from upslope.data.classify.taxonomy import decode

        artifact = loaded(self.classifier)
        model = artifact.model
        x = model.features(batch["text"])
        known: list[bool] = np.asarray(x.any(axis=1)).tolist()
        columns: dict[str, list[str | int | float | None]] = {name: [None] * batch.num_rows for name in self.gives}
        for field, (primary, secondary, chance) in decode(model.weights(x, model.layout), model.heads, artifact.body["secondary"]).items():
            for part, codes in (("", primary), ("_2", secondary)):
                as_is = field in LEVELS
                columns[field + part] = [(c if as_is else int(c)) if k and c != ABSTAIN else None for c, k in zip(codes, known)]
            columns[f"{field}_p"] = [p if k and c != ABSTAIN else None for p, c, k in zip(chance.tolist(), primary, known)]
        return pa.RecordBatch.from_pydict({n: pa.array(columns[n], pa.type_for_alias(t)) for n, t in self.gives.items()})
