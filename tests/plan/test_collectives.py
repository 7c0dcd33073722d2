# ruff: noqa: E501
"""HLO in the words of XLA for TPU, cut down to what is read."""

from jaxlora.plan.collectives import collectives

HLO = """HloModule jit_step, is_scheduled=true

%all-reduce-scatter.1.clone (input: bf16[8,64,128]) -> bf16[1,64,128] {
  %all-reduce.9 = bf16[8,64,128]{2,1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add.1
}

%async_collective_fusion.1 (param_0: bf16[16,128]) -> bf16[128,128] {
  %all-gather.1 = bf16[128,128]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=5, replica_groups=mesh['data'=2,'fsdp'=8] {'fsdp'}, dimensions={0}, frontend_attributes={chain_id="3"}, metadata={op_name="x"}
}

%async_collective_fusion.2 (param_0: bf16[16,128]) -> bf16[128,128] {
  %all-gather.2 = bf16[128,128]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=5, replica_groups=mesh['data'=2,'fsdp'=8] {'fsdp'}, dimensions={0}, frontend_attributes={chain_id="3"}, metadata={op_name="x"}
}

%inner_body (p: (s32[], bf16[4])) -> (s32[], bf16[4]) {
  %collective-permute-start.1 = (bf16[4,128]{1,0}, bf16[4,128]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), channel_id=1, source_target_pairs={{0,1},{1,2}}
  %collective-permute-done.1 = bf16[4,128]{1,0} collective-permute-done(%collective-permute-start.1)
}

%inner_condition (p: (s32[], bf16[4])) -> pred[] {
  %constant.2 = s32[] constant(3)
  ROOT %lt.2 = pred[] compare(%p, %constant.2), direction=LT
}

%layer (p: (s32[], bf16[16,128])) -> (s32[], bf16[16,128]) {
  %fusion.1 = bf16[128,128]{1,0} fusion(%p), kind=kCustom, calls=%async_collective_fusion.1
  %fusion.2 = bf16[128,128]{1,0} fusion(%p), kind=kCustom, calls=%async_collective_fusion.2
  %fusion.3 = bf16[1,64,128]{2,1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1.clone
  %while.2 = (s32[], bf16[4]) while(%p), condition=%inner_condition, body=%inner_body
}

%layer_condition (p: (s32[], bf16[16,128])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(32)
  ROOT %lt.1 = pred[]{:T(512)} compare(%p, %constant.1), direction=LT
}

%never (p: f32[8]) -> f32[8] {
  %all-reduce.7 = f32[8]{0} all-reduce(%p), channel_id=9, replica_groups={{0,1}}, to_apply=%add.1
}

ENTRY %main (p: bf16[16,128]) -> f32[8] {
  %while.1 = (s32[], bf16[16,128]) while(%p), condition=%layer_condition, body=%layer
  %all-reduce.1 = (f32[8]{0}, f32[24]{0}) all-reduce(%p, %p), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%add.1
  %all-gather.7 = s4[128]{0} all-gather(%p), channel_id=3, replica_groups={{0},{1}}, dimensions={0}
  %all-gather-start.8 = (s4[64]{0}, s4[128]{0}) all-gather-start(%p), channel_id=4, replica_groups={{0,1}}, dimensions={0}
  %all-gather-done.8 = s4[128]{0} all-gather-done(%all-gather-start.8)
}
"""


def test_loops_chains_and_fusions_are_counted_as_what_they_are():
    found = {(each.kind, each.size): (each.count, each.received) for each in collectives(HLO)}
    assert found == {
        ("reduce-scatter", 8): (32, 32 * 7 / 8 * 8 * 64 * 128 * 2),
        ("all-gather", 8): (32, 32 * 7 / 8 * 128 * 128 * 2),  # one chain of two fusions
        ("collective-permute", 2): (96, 96 * 4 * 128 * 2),  # a loop in a loop
        ("all-reduce", 4): (1, 2 * 3 / 4 * 32 * 4),
        ("all-gather", 2): (1, 1 / 2 * 64),  # half a byte a number
    }


def test_the_largest_exchange_comes_first():
    received = [each.received for each in collectives(HLO)]
    assert received == sorted(received, reverse=True)


def test_a_loop_that_says_how_often_it_turns():
    hlo = HLO.replace("body=%layer", 'body=%layer, backend_config={"known_trip_count":{"n":"5"}}')
    assert {each.kind: each.count for each in collectives(hlo)}["reduce-scatter"] == 5
