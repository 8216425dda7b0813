"""classify: the label, score and bucket that a trained classifier gives a document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from upslope.config import Input, Source, Wants
from upslope.data.protocol import Annotate
from upslope.machine.files import digest_file

if TYPE_CHECKING:
    import pyarrow as pa

    from upslope.data.classify.artifact import Classifier
    from upslope.machine.context import Context


class Classify(Annotate):
    """label: the class (classes joined by commas, or the rounded level); score: the probability of the positive class, or the number;
    bucket: 0 for the lowest scores, NULL where the classifier learnt no buckets. All NULL for a text without features.

    classifier: a stage of kind `classifier`, form `labels`, or a folder that one made.
    """

    kind: ClassVar[str] = "classify"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {"label": "string", "score": "float32", "bucket": "int32"}

    classifier: Annotated[Input | Source, Wants("Classifier")]

    def bind(self, ctx: Context) -> Annotate:
        """The step that reads the classifier's files, of which it knows the digest. UsageError if it is of another form."""
        return BoundClassify(name=self.column, classifier=resolved(ctx, self.classifier, "labels"))


class BoundClassify(Annotate):
    """`Classify` with its classifier.json, which in turn holds the digest of the weights."""

    kind: ClassVar[str] = "classify_file"
    version: ClassVar[int] = Classify.version
    gives: ClassVar[Mapping[str, str]] = Classify.gives

    classifier: Source

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Needs the column text; all of it is looked at, code and tables too."""
        import pyarrow as pa

        found = loaded(self.classifier).read(batch["text"])._asdict()
        return pa.RecordBatch.from_pydict({n: pa.array(found[n], pa.type_for_alias(t)) for n, t in self.gives.items()})


def resolved(ctx: Context, ref: Input | Source, form: str) -> Source:
    """classifier.json of an input or a folder, with its digest. UsageError if there is none, or it is of another form or format."""
    from upslope.config import UsageError
    from upslope.data.classify.artifact import Classifier, read_body

    folder = ctx.open(ref, Classifier).path if isinstance(ref, Input) else ref.path()
    file = Path(folder) / "classifier.json" if Path(folder).is_dir() else Path(folder)
    body = read_body(file)
    if body["form"] != form:
        raise UsageError(
            f"the classifier is of form {body['form']!r}; this annotator reads {form!r}\nway out: the annotator for it is "
            + repr({"labels": "classify"}.get(body["form"], body["form"]))
        )
    return Source(uri=str(file), digest=digest_file(file))


def loaded(source: Source) -> Classifier:
    """The classifier, loaded once in a process."""
    from upslope.data.classify.artifact import opened

    return opened(str(source.path()), source.digest or digest_file(source.path()))
