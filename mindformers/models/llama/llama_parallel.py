# SPDX-License-Identifier: Apache-2.0
"""How a Llama is laid out on machines, apart from its maths: the one table of strategies, stages, fusion, recompute.

A strategy says into how many parts each dimension of each input of an operation is split. It is attached to the
operations after the model is built, so the model files hold none of this. dp is data_parallel, mp is model_parallel.

=====================  =======================================================  ==============================
operation              inputs                                                   what moves between ranks
=====================  =======================================================  ==============================
embedding              table whole (or by rows over mp), tokens over dp         nothing (or AllReduce over mp)
norms, residual adds   rows over dp (over dp * mp with use_seq_parallel)        nothing (AllGather before wq..)
wq wk wv w1 w3         rows over dp, outputs over mp                            nothing; AllReduce backward
attention              records over dp, key/value heads over mp                 nothing
wo w2                  rows over dp, inputs over mp                             AllReduce (ReduceScatter)
adapter of wq .. w3    as the layer: A whole, B by outputs over mp              nothing; AllReduce backward
adapter of wo w2       as the layer: A by inputs over mp, B whole               AllReduce of (rows, rank)
head, loss             rows over dp, vocabulary whole (or over mp)              AllReduce of scalars (or of rows)
=====================  =======================================================  ==============================
"""

from typing import Any

from mindspore import nn

from mindformers.config.schema.parallel import layer_stages
from mindformers.core.loss import SplitCrossEntropyLoss
from mindformers.core.parallel_context import is_split
from mindformers.pet.lora import LoRADense


def apply_parallel(network: nn.Cell, layout: Any, *, reduce_scatter: bool = True) -> None:
    """Split a Llama over the ranks of a semi-auto parallel run; before anything is compiled.

    Args:
        network: a LlamaForCausalLM.
        layout: the ``parallel_config`` section.
        reduce_scatter: with use_seq_parallel, let wo and w2 end in a ReduceScatter; False where the device has none and
            an AllReduce must do.
    """
    dp, mp = layout.data_parallel, layout.model_parallel
    sequence = layout.use_seq_parallel and mp > 1
    rows = dp * mp if sequence else dp
    _broadcast(network)
    model = network.model
    model.tok_embeddings.gather.shard(((1 if layout.vocab_emb_dp else mp, 1), (dp, 1)))
    model.rotary_tables.gather.shard(((1, 1), (1, 1)))
    for layer in model.layers:
        _shard_norm(layer.attention_norm, rows)
        _shard_norm(layer.ffn_norm, rows)
        layer.add.shard(((rows, 1), (rows, 1)))
        _shard_attention(layer.attention, dp, mp)
        _shard_feed_forward(layer.feed_forward, dp, mp)
        for linear in (layer.attention.wo, layer.feed_forward.w2):
            _shard_by_inputs(linear, dp, mp, rows if sequence and reduce_scatter else dp)
    _shard_norm(model.norm_out, rows)
    _shard_head(network, dp, 1 if layout.vocab_emb_dp else mp)
    _place_stages(network, layout.pipeline_stage)
    _fuse_gradients(network, layout)


def apply_recompute(network: nn.Cell, recompute_config: Any, slices: int = 1) -> None:
    """Mark what is computed again in the backward pass instead of being kept.

    Args:
        network: a LlamaForCausalLM.
        recompute_config: the ``recompute_config`` section. ``recompute`` marks whole decoder layers,
            ``select_recompute`` only what is cheap and large in them: the attention product, the norms and the gate of
            the feed-forward; the others say whether communication is repeated and
            whether what is kept stays sliced over the ranks.
        slices: model_parallel, into how many slices that would be.
    """
    whole = recompute_config is not None and recompute_config.recompute and not recompute_config.select_recompute
    options = {}
    if is_split():
        if not whole:
            _recompute_dropout(network)
        options = (
            {
                "mp_comm_recompute": recompute_config.mp_comm_recompute,
                "recompute_slice_activation": recompute_config.recompute_slice_activation and slices > 1,
            }
            if whole
            else {}
        )
    if recompute_config is None or not (whole or recompute_config.select_recompute):
        return
    for layer in network.model.layers:
        if whole:
            layer.recompute(**options)
        else:
            attention = layer.attention.fused or layer.attention.attend
            for part in (attention, layer.attention_norm, layer.ffn_norm, layer.feed_forward.gate):
                part.recompute()


def _recompute_dropout(network: nn.Cell) -> None:
    """Fetch the masks of adapters again in the backward pass, as the gradient by hand does where nothing is split."""
    for _, cell in network.cells_and_names():
        if isinstance(cell, LoRADense) and cell.dropped is not None:
            cell.dropped.dropout.recompute()


def _broadcast(network: nn.Cell) -> None:
    """Masks and rotary tables with one entry per position for all records and heads, which each rank holds whole."""
    model = network.model
    for cell in (model, model.rotary_tables, *(layer.attention.attend for layer in model.layers)):
        cell.broadcasts = True
    network.first_row.shard(((1, 1),))


def _shard_norm(norm: nn.Cell, rows: int) -> None:
    if hasattr(norm, "norm"):  # the fused kernel
        norm.norm.shard(((rows, 1), (1,)))
        return
    wide, narrow = (rows, 1), (1, 1)
    norm.square.shard((wide, wide))
    norm.mean.shard((wide, narrow))
    norm.add_eps.shard((wide, ()))
    norm.rsqrt.shard((wide,))
    norm.as_row.shard(((1,),))
    norm.outer.shard((wide, narrow))
    norm.scale.shard((wide, wide))


def _shard_attention(attention: nn.Cell, dp: int, mp: int) -> None:
    heads, everywhere = (dp, mp, 1, 1), (1, 1, 1, 1)
    for linear in (attention.wq, attention.wk, attention.wv):
        _shard_by_outputs(linear, dp, mp)
    attention.split_heads.shard(((dp, 1, mp, 1),))
    attention.merge_heads.shard((heads,))
    rotary = attention.rotary
    rotary.split.shard((heads,))
    rotary.mul.shard((heads, everywhere))
    for operation in (rotary.add, rotary.sub, rotary.concat):
        operation.shard((heads, heads))
    attend = attention.attend
    for operation in (attend.scores, attend.context):
        operation.shard((heads, heads))
    attend.add_mask.shard((heads, everywhere))
    attend.softmax.shard((heads,))


def _shard_feed_forward(feed_forward: nn.Cell, dp: int, mp: int) -> None:
    for linear in (feed_forward.w1, feed_forward.w3):
        _shard_by_outputs(linear, dp, mp)
    feed_forward.gate.silu.shard(((dp, mp),))
    feed_forward.gate.mul.shard(((dp, mp), (dp, mp)))


def _shard_by_outputs(linear: nn.Cell, dp: int, mp: int) -> None:
    """A linear layer whose columns of results are dealt out over mp, and its adapter if it has one."""
    linear.matmul.shard(((dp, 1), (mp, 1)))
    if isinstance(linear, LoRADense):
        linear.lora_b_matmul.shard(((dp, 1), (mp, 1)))
        _shard_adapter(linear, (dp, 1), dp, (dp, mp))
        linear.lora_a_matmul.shard(((dp, 1), (1, 1)))


def _shard_by_inputs(linear: nn.Cell, dp: int, mp: int, rows: int) -> None:
    """A linear layer whose columns of inputs are dealt out over mp, with its results split by rows."""
    out = ((rows, 1),) if rows != dp else None
    linear.matmul.shard(((dp, mp), (1, mp)), out)
    if isinstance(linear, LoRADense):
        linear.lora_a_matmul.shard(((dp, mp), (1, mp)), out)
        _shard_adapter(linear, (dp, mp), rows, (rows, 1))
        linear.lora_b_matmul.shard(((rows, 1), (1, 1)))


def _shard_adapter(linear: LoRADense, inputs: tuple, rows: int, results: tuple) -> None:
    """What is not a product in an adapter: its dropout on inputs, the scale on rows of rank values, the sum."""
    linear.by_operations = True
    linear.scale.shard(((rows, 1), ()))
    linear.add.shard((results, results))
    if linear.dropped is None:
        return
    dropout = linear.dropped.dropout
    for operation in (dropout.stretch, dropout.shift):
        operation.shard(((1,), (1,)))
    for operation in (dropout.wrap_index, dropout.wrap):
        operation.shard(((1,), ()))
    dropout.gather.shard(((1, inputs[1]), (inputs[0],)))
    dropout.mul.shard((inputs, inputs))


def _shard_head(network: nn.Cell, dp: int, vocabulary: int) -> None:
    """Head, targets and loss; the vocabulary is split when ``vocabulary`` is above 1."""
    head = network.head_matmul if network.tied else network.lm_head.matmul
    head.shard(((dp, 1), (vocabulary, 1)))
    network.cut.shard(((dp, 1),))
    network.not_equal.shard(((dp,), ()))
    network.count.shard(((dp,),))
    if vocabulary > 1:
        network.loss = SplitCrossEntropyLoss()
    loss = network.loss
    loss.clear.shard(((dp,), (dp,)))
    loss.mul.shard(((dp,), (dp,)))
    loss.sum.shard(((dp,),))
    if vocabulary == 1:
        loss.log_softmax.shard(((dp, 1),))
        loss.gather.shard(((dp, 1), (dp, 1)))
        return
    table, column = (dp, vocabulary), (dp, 1)
    loss.highest.shard((table,))
    loss.shift.shard((table, column))
    loss.exp.shard((table,))
    loss.add_up.shard((table,))
    loss.log.shard((column,))
    loss.one_hot.shard((table, (), ()))
    loss.pick.shard((table, table))
    loss.subtract.shard((column, column))


def _place_stages(network: nn.Cell, stages: int) -> None:
    if stages == 1:
        return
    model, config = network.model, network.config
    model.tok_embeddings.pipeline_stage = 0
    for layer, stage in zip(model.layers, layer_stages(config.num_layers, stages, config.offset), strict=True):
        layer.pipeline_stage = stage
    model.norm_out.pipeline_stage = stages - 1
    if network.lm_head is not None:
        network.lm_head.pipeline_stage = stages - 1
    network.loss.pipeline_stage = stages - 1


def _fuse_gradients(network: nn.Cell, layout: Any) -> None:
    """Number the sets of parameters whose gradients travel in one message: 1 for the embedding, then layers."""
    model = network.model
    model.tok_embeddings.set_comm_fusion(1)
    last = 2
    for index, layer in enumerate(model.layers):
        if layout.pipeline_stage == 1:
            last = index * layout.gradient_aggregation_group // (len(model.layers) + 1) + 2
        layer.set_comm_fusion(last)
    model.norm_out.set_comm_fusion(last)
    if network.lm_head is not None:
        network.lm_head.set_comm_fusion(last)
