"""Golden vectors of iFADIT: one runner a kind, from the config alone (the table in the golden format's description).

The modules are the product's own, run as the product runs them: the identity transform in float64, the rest in the
dtype that is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.ifadit import (
    arcface,
    attribute_encoder,
    compensation,
    flow,
    latent_mapper,
    losses,
    referenceconfig,
    stylegan2,
)
from services.ifadit.alignment import ffhq_quad
from services.ifadit.anonymizer import Ifadit
from services.ifadit.configuration import PAPER
from services.ifadit.fir import kernel_of
from services.ifadit.keys import key_vector
from services.ifadit.masks import EdgeConfig, compose, soften
from shared import golden, keyderivation
from shared.golden import Case, CaseResult, Observed, Runner

M = TypeVar("M", bound=nn.Module)


class Networks:
    """Networks of the cases seen so far: at paper size, making the weights takes longer than running them."""

    def __init__(self) -> None:
        self._known: dict[str, nn.Module] = {}

    def get(self, case: Case, part: str, kind: type[M], config: Any) -> M:
        """The network `kind(config)` with the weights of a part, in eval mode; the same object for the same request."""
        key = json.dumps([str(case.folder), case.source(part), str(case.device), str(case.dtype)]) + repr(
            (kind, config)
        )
        if key not in self._known:
            with torch.device("meta"):
                network = kind(config)
            constants = _constants(network, config)
            weights = case.weights(part, network.state_dict() | constants)
            network.load_state_dict(constants | weights, assign=True)
            self._known[key] = network.to(case.device).eval().requires_grad_(False)
        return cast(M, self._known[key])


def _constants(network: nn.Module, config: Any) -> dict[str, Tensor]:
    """The filters of a generator: they belong to the architecture, and recipes keep them."""
    if not isinstance(config, stylegan2.GeneratorConfig):
        return {}
    kernel = kernel_of(config.blur)
    return {name: kernel for name in network.state_dict() if name.endswith(".kernel")}


def verify(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[CaseResult]:
    """Rerun every case of a folder in the golden format; one result a case, as it is ready."""
    yield from golden.run(golden.cases(folder, device, dtype), runners())


def runners() -> dict[str, Runner]:
    """A runner for every kind of the set. They share the networks they build."""
    networks = Networks()
    with_networks: dict[str, Callable[[Networks, Case], Observed]] = {
        "flow": run_flow,
        "stylegan2_generator": run_generator,
        "arcface": run_arcface,
        "psp_encoder": run_psp_encoder,
        "latent_mapper": run_latent_mapper,
        "icl": run_icl,
        "end_to_end": run_end_to_end,
    }
    bound: dict[str, Runner] = {kind: _bind(run, networks) for kind, run in with_networks.items()}
    return bound | {
        "loss": run_loss,
        "align": run_align,
        "method_key": run_method_key,
        "record_wrap": run_record_wrap,
        "audit_chain": run_audit_chain,
    }


def _bind(run: Callable[[Networks, Case], Observed], networks: Networks) -> Runner:
    return lambda case: run(networks, case)


def picture(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 0..255 to float in [0, 1]"""
    return pixels.to(dtype) / 255


def build_flow(networks: Networks, case: Case, config: flow.FlowConfig) -> flow.IdentityTransform:
    return networks.get(case, "flow", flow.IdentityTransform, config).double()


def run_flow(networks: Networks, case: Case) -> Observed:
    """Forward; the inverse of what came out, with the right and with the wrong key."""
    transform = build_flow(networks, case, referenceconfig.flow_config(case.config))
    x, key, wrong = (case.input(role).double() for role in ("x", "key", "key_wrong"))
    y, logdet = transform(x, key)
    x_back, logdet_back = transform.inverse(y, key)
    after_block = torch.stack([step.value for step in transform.steps(x, key)], dim=1)
    x_wrongkey, _ = transform.inverse(y, wrong)
    return Observed(
        {
            "after_block": after_block,
            "y": y,
            "x_back": x_back,
            "x_wrongkey": x_wrongkey,
            "logdet": logdet,
            "logdet_back": logdet_back,
        }
    )


def run_generator(networks: Networks, case: Case) -> Observed:
    """Mapping, then pictures of one mapped code, of given style rows, of a mixture, with truncation."""
    config = case.config
    generator = networks.get(case, "generator", stylegan2.Generator, referenceconfig.generator_config(config))
    key, wplus = case.input("key_uniform"), case.input("wplus")
    styles = wplus.shape[1]
    mapped = generator.style(key)
    tensors = {"mapped": mapped}
    with _watched(generator) as features:
        pictures = {"from_wplus": generator(wplus)}
    tensors |= {f"feat.{name}": value for name, value in features.items()}
    pictures["from_mapped"] = generator(_rows(mapped, styles))
    if (truncation := config.get("truncation")) is not None:
        mean = case.input("trunc_latent")
        pictures["trunc"] = generator(_rows(mean + truncation * (mapped - mean), styles))
    if mix := config.get("mix"):
        at = mix["inject_index"]
        rest = generator.style(key.flip(1))
        pictures[f"mix_inject{at}"] = generator(torch.cat([_rows(mapped, at), _rows(rest, styles - at)], dim=1))
    for name, drawn in pictures.items():
        tensors[f"image_{name}"] = drawn
        tensors[f"image_{name}_pool4"] = F.avg_pool2d(drawn, 4)
        if crop := config.get("crop"):
            tensors[f"image_{name}_crop"] = window(drawn, crop)
    return Observed(tensors)


def _rows(w: Tensor, count: int) -> Tensor:
    """(B, d) -> (B, count, d): the same style in every row"""
    return w[:, None].expand(-1, count, -1)


class _watched:
    """Collect what the parts of a generator put out, by the names that the golden format gives them."""

    def __init__(self, generator: stylegan2.Generator) -> None:
        self.parts: dict[str, nn.Module] = {
            "const": generator.input,
            "conv1": generator.conv1,
            "rgb1": generator.to_rgb1,
            **{f"convs.{i}": layer for i, layer in enumerate(generator.convs)},
            **{f"to_rgbs.{i}": layer for i, layer in enumerate(generator.to_rgbs)},
        }

    def __enter__(self) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        self.hooks = [part.register_forward_hook(_keep(features, name)) for name, part in self.parts.items()]
        return features

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def _keep(features: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        features[name] = output

    return hook


def window(x: Tensor, crop: Mapping[str, int]) -> Tensor:
    """The part of pictures that `top`, `left`, `height`, `width` name."""
    top, left = crop["top"], crop["left"]
    return x[:, :, top : top + crop["height"], left : left + crop["width"]]


def run_arcface(networks: Networks, case: Case) -> Observed:
    encoder = networks.get(case, "arcface", arcface.IdentityEncoder, referenceconfig.arcface_config(case.config))
    x = picture(case.input("picture_u8"), case.dtype)
    return Observed({"pooled_crop_sub4": encoder.prepare(x)[:, :, ::4, ::4], "feature": encoder(x)})


def run_psp_encoder(networks: Networks, case: Case) -> Observed:
    pixels = case.input("picture_u8")[list(case.config["pictures"])]
    config = referenceconfig.psp_config(case.config, pixels.shape[-1])
    encoder = networks.get(case, "encoder", attribute_encoder.AttributeEncoder, config)
    return Observed({"codes": encoder(picture(pixels, case.dtype))})


def build_mapper(networks: Networks, case: Case, config: Mapping[str, Any]) -> latent_mapper.LatentMapper:
    made = latent_mapper.LatentMapperConfig(
        tuple(config["layers"]), config["negative_slope"], identity_gain=1.0, unit_identity=False
    )
    return networks.get(case, "latent_mapper", latent_mapper.LatentMapper, made)


def run_latent_mapper(networks: Networks, case: Case) -> Observed:
    return Observed({"y": build_mapper(networks, case, case.config)(case.input("x"))})


def build_icl(networks: Networks, case: Case, config: Mapping[str, Any]) -> compensation.Compensation:
    made = compensation.CompensationConfig(tuple(config["layers"]), config["negative_slope"], skip=False)
    return networks.get(case, "icl", compensation.Compensation, made)


def run_icl(networks: Networks, case: Case) -> Observed:
    return Observed({"y": build_icl(networks, case, case.config)(case.input("x"))})


def run_end_to_end(networks: Networks, case: Case) -> Observed:
    """Anonymize, recover with the right and with a wrong key from the stored anonymized picture; at paper size."""
    config = case.config
    size = case.input("picture_u8").shape[-1]
    edge = EdgeConfig(config["mask"]["dilate"], config["mask"]["gaussian"], config["mask"]["sigma"])
    if (border := config["mask"].get("border", "reflect-101")) != "reflect-101":
        raise ValueError(f"masks are blurred with border reflect-101, not {border!r}")
    with torch.device("meta"):
        model = Ifadit(PAPER)
    model.E_id = networks.get(case, "arcface", arcface.IdentityEncoder, PAPER.identity)
    model.E_attr = networks.get(case, "encoder", attribute_encoder.AttributeEncoder, PAPER.attributes)
    model.M = networks.get(case, "latent_mapper", latent_mapper.LatentMapper, PAPER.mapper)
    model.G = networks.get(case, "generator", stylegan2.Generator, PAPER.generator)
    model.T = build_flow(networks, case, PAPER.flow)
    model.ICL = networks.get(case, "icl", compensation.Compensation, PAPER.compensation)
    model.eval()

    x = picture(case.input("picture_u8"), case.dtype)[config["picture"]][None]
    mask = soften(picture(case.input("mask_u8"), case.dtype).reshape(1, 1, size, size), edge)
    key, wrong = case.input("key"), case.input("key_wrong")
    stored = case.stored("outputs")["anon.composite_u8"].to(case.device)
    x_anon = picture(stored, case.dtype)
    tensors = {
        "blurred_mask": mask[0, 0, ::2, ::2],
        "key_mapped": model.condition(key),
        "key_wrong_mapped": model.condition(wrong),
    }
    passes = {
        "anon": (x, model.anonymize(x, key, mask)),
        "recover": (x_anon, model.recover(x_anon, key, mask)),
        "wrong": (x_anon, model.recover(x_anon, wrong, mask)),
    }
    for name, (background, drawn) in passes.items():
        # The reference blends before it clips.
        composite = compose(drawn.picture, background, mask)
        tensors |= {
            f"{name}.attr": drawn.attributes,
            f"{name}.wplus": drawn.styles,
            f"{name}.image_pool4": F.avg_pool2d(2 * drawn.picture - 1, 4),  # stored in the generator's range
            f"{name}.composite_pool4": F.avg_pool2d(composite, 4),
            f"{name}.composite_crop": window(composite, config["composite_crop"]),
            f"{name}.composite_u8": (composite.clamp(0, 1) * 255).round().to(torch.uint8),
        }
        if name == "anon":
            tensors |= {"anon.id": drawn.embedding, "anon.id_new": drawn.identity}
        else:
            tensors |= {f"{name}.icl_out": drawn.start, f"{name}.id": drawn.identity}
    distance = (tensors["recover.image_pool4"] - tensors["wrong.image_pool4"]).abs().mean()
    if not distance > 0.5:
        raise ValueError(f"a wrong key recovers nearly the same face: mean difference {distance:.3f}")
    return Observed(tensors)


def run_loss(case: Case) -> Observed:
    a, b = case.input("a"), case.input("b")
    margin, threshold = case.config["margin"], case.config["inter_threshold"]
    terms = (
        losses.identity_loss(a, b, margin),
        losses.reversed_identity_loss(a, b, margin),
        losses.inter_loss(a, threshold),
    )
    return Observed({"losses": torch.stack(terms)})


def run_align(case: Case) -> Observed:
    answers = []
    for given in case.values()["cases"]:
        quad = ffhq_quad(np.array(given["landmarks"], dtype=np.float64))
        answers.append(
            {
                "c": quad.center.tolist(),
                "x": quad.x.tolist(),
                "y": quad.y.tolist(),
                "quad": quad.corners.tolist(),
                "qsize": quad.size,
                "shrink_256": quad.shrink(256),
                "border": quad.border,
            }
        )
    return Observed(values={"cases": answers}, given=frozenset({"name", "landmarks"}))


def run_method_key(case: Case) -> Observed:
    answers = []
    for given in case.values()["method_keys"]:
        context = {
            "tenant": given["tenant"],
            "key_id": given["key_id"],
            "model_id": given["model"],
            "image_nonce": bytes.fromhex(given["nonce_hex"]),
            "dim": given.get("dim", 512),
        }
        octets = keyderivation.method_key(bytes.fromhex(given["secret_hex"]), **context)
        key = key_vector(octets, given.get("scheme", "v1-uniform")).double()
        answers.append(
            {
                "info_hex": keyderivation.hkdf_info(**context).hex(),
                "okm_sha256": hashlib.sha256(octets).hexdigest(),
                "okm_first16_hex": octets[:16].hex(),
                "key_first8": key[:8].tolist(),
                "key_last4": key[-4:].tolist(),
                "key_sum": key.sum().item(),
            }
        )
    inputs = {"length_prefix", "method_key", "secret_hex", "tenant", "key_id", "model", "nonce_hex", "dim", "scheme"}
    return Observed(values={"method_keys": answers}, given=frozenset(inputs))


def run_record_wrap(case: Case) -> Observed:
    answers = []
    for given in case.values()["wraps"]:
        purpose, tenant, key_id, key_version, kek_id, kek_version, algorithm = given["aad_fields"]
        aad = keyderivation.record_aad(
            purpose=purpose,
            tenant=tenant,
            key_id=key_id,
            key_version=key_version,
            kek_id=kek_id,
            kek_version=kek_version,
            algorithm=algorithm,
        )
        kek, nonce, plaintext = (bytes.fromhex(given[name]) for name in ("kek_hex", "nonce_hex", "plaintext_hex"))
        wrapped = keyderivation.wrap(kek, nonce, plaintext, aad, algorithm)
        if keyderivation.unwrap(kek, nonce, wrapped, aad, algorithm) != plaintext:
            raise ValueError("what was wrapped does not come out again")
        answers.append({"aad_hex": aad.hex(), "ciphertext_and_tag_hex": wrapped.hex()})
    inputs = {"length_prefix", "wrap", "kek_hex", "nonce_hex", "plaintext_hex", "aad_fields"}
    return Observed(values={"wraps": answers}, given=frozenset(inputs))


def run_audit_chain(case: Case) -> Observed:
    values = case.values()
    audit_key, previous, answers = bytes.fromhex(values["audit_key_hex"]), keyderivation.CHAIN_START, []
    for given in values["audit_chain"]:
        mac = keyderivation.chain_mac(audit_key, previous, given["event"])
        answers.append({"prev_hex": previous.hex(), "mac_hex": mac.hex()})
        previous = mac
    return Observed(values={"audit_chain": answers}, given=frozenset({"audit", "audit_key_hex", "event"}))
