"""The report of an investigation: one page, every figure beside its control."""

import numpy as np
import xarray as xr

from patchclamp import views
from patchclamp.investigate.circuit import DRAWN, Evidence
from patchclamp.investigate.features import SIZES, Features
from patchclamp.investigate.result import Investigation
from patchclamp.views import Details, Paragraph, Plot, Report, Section, Table, Verdict

_MEANS = {"state": "prompts in two states", "answers": "prompts by their answer"}
_STREAMS = {
    "resid_pre": "the residual stream before each block",
    "attn_out": "what attention adds",
    "mlp_out": "what the MLP adds",
}


def page(found: Investigation) -> Report:
    """The report; `.save(path)` writes it as one HTML file that needs no network."""
    sections = [_behaviour(found), _where(found)]
    if found.tables.heads is not None:
        sections.append(_heads(found))
    if found.patterns is not None:
        sections.append(_attention(found))
    if found.tables.direct is not None:
        sections.append(_direct(found))
    sections += [_circuit(found), _flip(found), _features(found), _certificate(found)]
    certificate = found.certificate
    return Report(
        title=f"How {found.model} does {found.task}",
        subtitle="Exact patching, the heads that it needs, its circuit, a direction that flips it, and its features",
        facts={
            "model": f"{found.model} ({certificate.architecture})",
            "task": f"{found.task}, {found.prompts} prompts",
            "example": found.example,
            "certificate": "holds" if certificate.holds else "does not hold",
            "attention": certificate.implementation,
            "numbers": f"{certificate.dtype}, seed {found.seed}, {found.seconds:.0f} s",
            "versions": f"transformers {certificate.transformers}",
        },
        findings=found.sentences(),
        sections=tuple(sections),
    )


def _behaviour(found: Investigation) -> Section:
    b = found.behaviour
    rows = [
        {"": "clean prompts", "accuracy": b.accuracy, "top-1": b.top1, "logit difference": b.clean},
        {"": "corrupted prompts", "accuracy": b.corrupted_accuracy, "top-1": None, "logit difference": b.corrupted},
    ]
    low, high = b.accuracy_interval
    parts = [
        Paragraph(
            "Accuracy: the best right answer has a higher logit than the best wrong one. Corrupted prompts are judged "
            "by the clean prompt's answer, so that a corruption that works brings it down."
        ),
        Table(
            rows,
            f"behaviour on {b.n} prompts; 95 % of accuracy {low:.3f} to {high:.3f}",
        ),
        *(
            Verdict(
                finding.claim,
                finding.holds,
                {
                    "measured": f"{finding.measured:.3f}",
                    finding.control_name: f"{finding.control:.3f} ({_range(finding.interval)})",
                },
            )
            for finding in found.findings
        ),
    ]
    return Section("Behaviour and findings", tuple(parts))


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _where(found: Investigation) -> Section:
    tables, parts = found.tables, []
    parts.append(
        Paragraph(
            "Each cell is one forward pass on the corrupted prompts with one activation taken from the clean run: 0 is "
            "the corrupted logit difference, 1 the clean one. The numbers are exact, not an approximation."
        )
    )
    for kind, array in tables.streams.items():
        parts.append(
            Plot(
                views.heatmap(_named(array, tables.labels), title=f"{kind}: {_STREAMS[kind]}"),
                alt=f"Effect of patching {kind} at each layer and position",
            )
        )
    exact, near = tables.streams["resid_pre"], tables.stream_attribution
    parts.append(
        Plot(
            views.scatter(exact.values.ravel(), near.values.ravel(), x_title="exact", y_title="attribution (linear)"),
            alt="Exact effects against their linear approximation, for resid_pre",
            caption="Attribution patching estimates the same table from one gradient. Where it leaves the diagonal it "
            "would have misled.",
        )
    )
    return Section("Where the answer is carried", tuple(parts))


def _named(array: xr.DataArray, labels: tuple[str, ...]) -> xr.DataArray:
    """The array with tokens or roles on its position axis, made unique by their number."""
    dim = str(array.dims[-1])
    names = [f"{i} {label}" if dim == "pos" else label for i, label in enumerate(labels)]
    return array.assign_coords({dim: names}) if len(names) == array.sizes[dim] else array


def _heads(found: Investigation) -> Section:
    tables, heads = found.tables, found.heads
    assert tables.heads is not None and tables.head_attribution is not None and heads is not None
    parts: list = [
        Plot(
            views.heatmap(tables.heads, title="heads: z of one head, at all positions"),
            alt="Effect of patching each head",
            caption=f"Exact. Correlation with attribution patching: {found.correlations['heads']:.2f}.",
        ),
        Paragraph(
            "Heads are named one at a time on half of the prompts: each is the one whose mean ablation, beside those "
            "named before, lowers the logit difference most, until accuracy is at chance. The other half judges."
        ),
        Table(
            [
                {"head": head, "patching effect": _effect(tables.heads, head), "accuracy after": after}
                for head, after in zip(heads.named, heads.accuracy_after, strict=True)
            ],
            "the heads in the order in which they were named",
        ),
        Plot(
            views.bars(
                [f"{a.kind} ablation" for a in heads.ablations],
                [a.accuracy for a in heads.ablations],
                control=[float(np.mean(a.random_accuracy)) for a in heads.ablations],
                control_intervals=[a.interval for a in heads.ablations],
                title="accuracy with the heads ablated, on the other half of the prompts",
                x_title="accuracy",
                label="the named heads",
                control_label="random sets of as many heads",
            ),
            alt="Accuracy with the named heads ablated, beside random sets",
            caption=f"Nothing ablated: {heads.clean_accuracy:.3f}. Chance: 0.5.",
        ),
    ]
    return Section("The heads that it needs", tuple(parts))


def _effect(array: xr.DataArray, head: str) -> float:
    _, layer, unit = head.split(".")
    return float(array.sel(layer=int(layer), head=int(unit)))


def _attention(found: Investigation) -> Section:
    assert found.patterns is not None
    patterns = found.patterns
    parts: list = [
        Table(patterns["to_roles"], "attention from the answer position to each role, mean over prompts"),
    ]
    for head, pattern in patterns["example"].items():
        parts.append(
            Plot(
                views.attention(pattern, patterns["tokens"], title=f"head {head.removeprefix('z.')}"),
                alt=f"Attention pattern of {head} on one prompt",
            )
        )
    return Section("What they attend to", tuple(parts))


def _direct(found: Investigation) -> Section:
    direct = found.tables.direct
    assert direct is not None
    mean, spread = direct.mean("prompt").values, direct.std("prompt").values / np.sqrt(direct.sizes["prompt"])
    order = np.argsort(-np.abs(mean))[:16]
    names = [str(direct.component.values[i]) for i in order]
    rows = [{"component": str(n), "logits": float(m)} for n, m in zip(direct.component.values, mean, strict=True)]
    figure = views.bars(
        names,
        [float(mean[i]) for i in order],
        intervals=[(float(mean[i] - 1.96 * spread[i]), float(mean[i] + 1.96 * spread[i])) for i in order],
        title="direct effect on the logit difference",
        x_title="logits",
        label="direct effect",
    )
    return Section(
        "What writes the answer",
        (
            Paragraph(
                "The last norm's scale held fixed, the logit difference is the sum of what each component writes into "
                f"the stream. The parts sum to {float(mean.sum()):.4f}; the model's own is "
                f"{direct.attrs['logit_difference']:.4f}."
            ),
            Plot(figure, alt="Direct effects of the strongest components", caption="95 % intervals over prompts."),
            Details("all components", (Table(rows, "direct effects, in logits"),)),
        ),
    )


def _circuit(found: Investigation) -> Section:
    heading, evidence = "The circuit", found.circuit
    if not isinstance(evidence, Evidence):
        return Section(heading, (Paragraph(f"There is none: {evidence}."),))
    circuit = evidence.circuit
    shown = min(DRAWN, circuit.size)
    agreement = "" if evidence.agreement is None else f" Correlation with EAP-IG: {evidence.agreement:.3f}."
    parts = (
        Paragraph(
            f"Integrated gradients (EAP-IG) scored {circuit.graph.size} edges on {evidence.prompts} prompts and chose "
            f"{circuit.size} of them ({circuit.share:.1%}). Every other edge then carries the corrupted prompts' "
            "contribution, the mean, or nothing, and the other half of the prompts judges: 1 is the whole network, 0 "
            "that with every edge cut. The ablations ask different things, so all three are shown."
        ),
        Plot(
            views.layered(**evidence.drawing(), title="edges by layer", weight_label="EAP-IG"),
            alt=f"The {shown} strongest edges of the circuit between embeddings, heads, MLPs and logits, by layer",
            caption=f"{shown} of {circuit.size} edges, wider where more is lost without them, red where it is gained. "
            "Point at an edge for its evidence: what the logit difference loses when it alone is cut (exact), and what "
            "the circuit's faithfulness loses (minimality).",
        ),
        Plot(
            views.bars(
                [f"{one.ablation} ablation" for one in circuit.measured],
                [one.faithfulness for one in circuit.measured],
                intervals=[one.interval for one in circuit.measured],
                control=[float(np.mean(one.random)) for one in circuit.measured],
                control_intervals=[(min(one.random), max(one.random)) for one in circuit.measured],
                title="faithfulness of the circuit alone",
                x_title="faithfulness",
                label="the circuit",
                control_label="random circuits of as many edges",
            ),
            alt="Faithfulness under three ablations, beside random circuits",
            caption="95 % intervals over prompts; of random circuits, least to most.",
        ),
        Details(
            "all edges",
            (
                Paragraph(
                    f"Exact: {evidence.exact.said}. Minimality: {evidence.minimality.said}.{agreement}",
                ),
                Table(evidence.rows(), "edges of the circuit, strongest first"),
                Table(circuit.rows(), "what the circuit does alone, and the network without it (completeness)"),
            ),
        ),
    )
    return Section(heading, parts)


def _flip(found: Investigation) -> Section:
    flip = found.flip
    random = np.array(flip.random_flipped)
    figure = views.lines(
        list(flip.strengths),
        {"mean difference": list(flip.flipped)},
        control=random.mean(1).tolist(),
        control_interval=np.stack([random.min(1), random.max(1)], axis=1).tolist(),
        title="share of prompts whose answer flips",
        x_title="strength (1: from one mean to the other)",
        y_title="share flipped",
        control_label="random directions of the same norm",
    )
    text = (
        f"Means over {_MEANS[flip.kind]} ({flip.states}) at `{flip.site}`, position {flip.position}, found on half of "
        f"the prompts; their difference (norm {flip.norm:.2f}) is added to the other half."
    )
    return Section(
        "A direction that flips it",
        (Paragraph(text), Plot(figure, alt="Dose and response of the direction, beside random directions")),
    )


def _features(found: Investigation) -> Section:
    heading, few = "What is represented there", found.features
    if not isinstance(few, Features):
        return Section(heading, (Paragraph(f"No features were looked for: {few}."),))
    random = np.array(few.random)
    figure = views.lines(
        list(SIZES),
        {"its latents": list(few.carried), "an untrained dictionary's": list(few.untrained)},
        control=random.mean(1).tolist(),
        control_interval=np.stack([random.min(1), random.max(1)], axis=1).tolist(),
        title="share of the answer that latents bring back",
        x_title="latents patched together",
        y_title="share brought back",
        control_label="random active latents",
    )
    parts: list = [
        Paragraph(
            f"Latents of a sparse dictionary at `{few.site}` ({few.width} latents; {few.source}; it leaves "
            f"{few.unexplained:.1%} of the variance on these prompts unexplained). Gradients on half of the prompts "
            "say which carry what differs between clean and corrupted prompts; on the other half these are patched "
            "into corrupted runs, exactly: 1 is the clean logit difference. All latents together bring back "
            f"{few.every:.2f}; the rest is in what the dictionary does not explain."
        ),
        Plot(figure, alt="What latents bring back of the answer by their number, beside two controls"),
        Table(few.rows(), "the named latents, the strongest first"),
    ]
    if few.cards is not None:
        contexts = [
            {"latent": card.latent, "value": max(context.values), "text": str(context).replace("\n", "↵")}
            for card in few.cards
            for context in card.examples["top"][:3]
        ]
        parts.append(Details("where they fire", (Table(contexts, "the strongest contexts of each, in text"),)))
    return Section(heading, tuple(parts))


def _certificate(found: Investigation) -> Section:
    c = found.certificate
    rows = [
        {"equation": r.equation, "where": r.sites, "holds": r.holds, "error": r.error, "note": r.note} for r in c.rows
    ]
    absent = [{"site": site, "why": why} for site, why in c.absent]
    parts: list = [
        Paragraph(
            "Every site's equation, checked on this model before anything was measured. Recording leaves the logits "
            "as they are bit for bit; the error is relative to the size of the activation."
        ),
        Details("all equations", (Table(rows, f"{c.model}: {'holds' if c.holds else 'does not hold'}"),)),
    ]
    if absent:
        parts.append(Details("what this architecture does not have", (Table(absent, "absent sites, and why"),)))
    return Section("Certificate", tuple(parts))
