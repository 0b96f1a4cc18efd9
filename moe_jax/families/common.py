"""Parts shared by the families: tables of names, and the fields that all their configs have."""

from typing import Any

from moe_jax.config import Config
from moe_jax.families.family import Part, Slot
from moe_jax.families.fields import EXPERTS, TOPK, Fields

LAYER = 'model.layers.{l}.'
INPUTS = ('gate', 'up')


def _linear(path: str, name: str) -> tuple[Slot, Slot]:
    """A kernel, which is stored as [out, in], and its bias if the config has one."""
    return (Slot(path, f'{name}.weight', transposed=True), Slot(f'{path}_bias', f'{name}.bias'))


def ffn(path: str, name: str) -> tuple[Slot, ...]:
    """A dense gated feed-forward: gate_proj, up_proj, down_proj."""
    return tuple(slot for part in ('gate', 'up', 'down')
                 for slot in _linear(f'{path}/{part}', f'{name}.{part}_proj'))


def experts(name: str, gate: str = 'gate_proj', up: str = 'up_proj', down: str = 'down_proj',
            fused: str | None = None) -> tuple[Slot, ...]:
    """Three tensors for each expert under `name`; or two fused ones, as in transformers 5.

    fused: where the fused tensors are (None: name); gate_up_proj [E, 2F, D] has the gate first.
    """
    path, parts = 'layer_{l}/moe/experts/', (('gate', gate), ('up', up), ('down', down))
    each = tuple(Slot(path + ours, f'{name}.experts.{{e}}.{theirs}.weight', transposed=True)
                 for ours, theirs in parts)
    where = f'{name if fused is None else fused}.experts'
    return each + fused_experts(f'{where}.gate_up_proj', f'{where}.down_proj')


def fused_experts(gate_up: str, down: str) -> tuple[Slot, ...]:
    """Experts in two tensors: gate over up [E, 2F, D], and down [E, D, F]."""
    path = 'layer_{l}/moe/experts/'
    return (*(Slot(path + ours, gate_up, True, Part(1, i, 2)) for i, ours in enumerate(INPUTS)),
            Slot(f'{path}down', down, True))


def router(kernel: str, bias: str | None = None, correction: str | None = None
           ) -> tuple[Slot, ...]:
    """The router's kernel [R, D], stored in the same layout, its bias and correction [R]."""
    leaves = (('kernel', kernel), ('bias', bias), ('correction', correction))
    return tuple(Slot(f'layer_{{l}}/moe/router/{ours}', theirs)
                 for ours, theirs in leaves if theirs is not None)


DECODER = (
    Slot('embed/tokens', 'model.embed_tokens.weight'),
    Slot('head/kernel', 'lm_head.weight'),
    Slot('norm_final/scale', 'model.norm.weight'),
    Slot('layer_{l}/norm_attn/scale', LAYER + 'input_layernorm.weight'),
    Slot('layer_{l}/norm_ffn/scale', LAYER + 'post_attention_layernorm.weight'),
    *_linear('layer_{l}/attn/out', LAYER + 'self_attn.o_proj'),
    *_linear('layer_{l}/attn/q', LAYER + 'self_attn.q_proj'),
    *ffn('layer_{l}/mlp', LAYER + 'mlp'),
)
GROUPED_QUERY = (
    *_linear('layer_{l}/attn/k', LAYER + 'self_attn.k_proj'),
    *_linear('layer_{l}/attn/v', LAYER + 'self_attn.v_proj'),
    Slot('layer_{l}/attn/q_norm/scale', LAYER + 'self_attn.q_norm.weight'),
    Slot('layer_{l}/attn/k_norm/scale', LAYER + 'self_attn.k_norm.weight'),
    Slot('layer_{l}/attn/sinks', LAYER + 'self_attn.sinks'),
)
LATENT = (
    *_linear('layer_{l}/attn/q_down', LAYER + 'self_attn.q_a_proj'),
    Slot('layer_{l}/attn/q_norm/scale', LAYER + 'self_attn.q_a_layernorm.weight'),
    *_linear('layer_{l}/attn/q_up', LAYER + 'self_attn.q_b_proj'),
    *_linear('layer_{l}/attn/kv_down', LAYER + 'self_attn.kv_a_proj_with_mqa'),
    Slot('layer_{l}/attn/kv_norm/scale', LAYER + 'self_attn.kv_a_layernorm.weight'),
    *_linear('layer_{l}/attn/kv_up', LAYER + 'self_attn.kv_b_proj'),
)
LLAMA = DECODER + GROUPED_QUERY
SHARED_EXPERTS = ffn('layer_{l}/moe/shared', LAYER + 'mlp.shared_experts')


def decoder_config(f: Fields, *, experts: tuple[int, ...], hidden: int, theta: float = 10_000.0,
                   eps: float = 1e-6, default_head_dim: int = 0, **own: Any) -> Config:
    """The Config of a pre-norm decoder with RMS norm and SwiGLU; `own` has what the family adds.

    experts: per layer; hidden: of an expert. theta, eps and default_head_dim (0: width / heads) are
    the defaults of transformers for the family, used if config.json has no value.
    """
    f.only('hidden_act', 'silu', 'swish')
    f.integer(*EXPERTS, least=1)  # with none, all layers would pass for dense ones
    heads, width = f.integer('num_attention_heads', least=1), f.integer('hidden_size', least=1)
    bias = f.flag('attention_bias', False)
    usual: dict[str, Any] = {
        'kv_heads': f.integer('num_key_value_heads', default=heads, least=1),
        'capacity_train': None, 'capacity_eval': None,
        'balance': f.get('router_aux_loss_coef', default=0.001),
        'norm': 'rms', 'norm_eps': f.get('rms_norm_eps', default=eps), 'ffn': 'swiglu',
        'ffn_bias': False, 'qkv_bias': bias, 'out_bias': bias,
        'tied': f.flag('tie_word_embeddings', False), 'dtype': f.dtype(),
    }
    if 'head_dim' not in own:
        usual['head_dim'] = _head_dim(f, width, heads, default_head_dim)
    if 'rope' not in own:
        usual['rope'] = f.rope(usual['head_dim'], theta)
    return Config(
        vocab=f.integer('vocab_size'), positions=f.integer('max_position_embeddings'), width=width,
        heads=heads, mlp_hidden=f.integer('intermediate_size'), expert_hidden=hidden,
        experts=experts,
        topk=f.integer(*TOPK),  # pyright: ignore[reportCallIssue] (a setting of the router)
        **usual | own,
    )


def _head_dim(f: Fields, width: int, heads: int, default: int) -> int:
    if f.get('head_dim', default=default or None) is None and width % heads:
        raise ValueError(f'{f.where}: hidden_size={width} is not divisible by '
                         f'num_attention_heads={heads}, and head_dim is missing')
    return f.integer('head_dim', default=default or width // heads, least=1)


def dense_first(f: Fields, count: int, default: int = 0) -> tuple[int, ...]:
    """Experts per layer where the first `first_k_dense_replace` layers are dense."""
    layers, dense = layer_count(f), f.integer('first_k_dense_replace', default=default)
    return tuple(0 if i < dense else count for i in range(layers))


def every_step(f: Fields, count: int) -> tuple[int, ...]:
    """Experts per layer where every decoder_sparse_step-th has some, mlp_only_layers excepted."""
    step, dense = f.integer('decoder_sparse_step', default=1, least=1), _dense_layers(f)
    return tuple(count if i not in dense and (i + 1) % step == 0 else 0
                 for i in range(layer_count(f)))


def _dense_layers(f: Fields) -> set[int]:
    layers = f.get('mlp_only_layers', default=[])
    if not isinstance(layers, list) or not all(
            isinstance(layer, int) for layer in layers):
        raise ValueError(f'{f.where}: mlp_only_layers={layers!r}: must be a list of layer numbers')
    return set(layers)


def everywhere(f: Fields, count: int) -> tuple[int, ...]:
    """Experts per layer where all layers have them."""
    return (count,) * layer_count(f)


def layer_count(f: Fields) -> int:
    """The value of num_hidden_layers; ValueError if no machine could hold that many layers."""
    layers = f.integer('num_hidden_layers')
    if not 0 < layers <= 4096:
        raise ValueError(f'{f.where}: num_hidden_layers={layers}: must be 1 to 4096')
    return layers


def sigmoid_groups(f: Fields, *, renormalized: bool, scale: float, groups: int, used: int
                   ) -> dict[str, Any]:
    """The routing of DeepSeek-V3 and those after it: sigmoids, correction, groups, a scale.

    The arguments are the defaults of transformers, used if config.json has no value.
    """
    renormalized = f.flag('norm_topk_prob', renormalized)
    return {
        'gate': 'sigmoid_topk_renorm' if renormalized else 'sigmoid_topk', 'correction': True,
        'gate_scale': f.get('routed_scaling_factor', default=scale),
        'groups': f.integer('n_group', default=groups),
        'groups_used': f.integer('topk_group', default=used),
    }


def softmax_gate(f: Fields) -> str:
    """Softmax over all experts; the chosen ones are renormalized if norm_topk_prob is true."""
    return 'softmax_topk_renorm' if f.flag('norm_topk_prob', False) else 'softmax_topk'
