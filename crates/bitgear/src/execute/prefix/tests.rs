use super::*;
use crate::execute::fixture::{LAYERS, check, model, split_at};

#[test]
fn a_resumed_stage_runs_only_the_layers_that_differ() {
    let models = [model(&[(3, 3); LAYERS]), split_at(3, (3, 3), (8, 8))];
    assert_eq!(shared_layers(&models[0], &models[1]), 3);
    let legs = relay(&models, &[0, 3]).unwrap();
    assert_eq!(legs[0].model.mac_steps().count(), LAYERS);
    assert_eq!(legs[1].model.mac_steps().count(), LAYERS - 3);
    assert!(legs[1].model.inputs.is_empty());
    // The block's result at 8 bits: nothing else is read across the boundary.
    let handoff = legs[1].handoff.as_ref().unwrap();
    let names: Vec<&str> =
        handoff.given.iter().map(|&map| legs[1].model.maps[map].name.as_str()).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    check(&models, &[0, 3]);
}

#[test]
fn a_live_residual_and_codes_that_only_move_cross_the_boundary() {
    // Before layer 1 only the stem's result lives: its convolution is read by two poolings.
    let models = [model(&[(3, 3); LAYERS]), split_at(1, (3, 3), (5, 6))];
    check(&models, &[0, 1]);
    // Before layer 2 the residual does, too.
    let models = [model(&[(3, 3); LAYERS]), split_at(2, (3, 3), (4, 7))];
    let legs = relay(&models, &[0, 2]).unwrap();
    assert_eq!(legs[1].handoff.as_ref().unwrap().given.len(), 2);
    check(&models, &[0, 2]);
}

#[test]
fn fewer_layers_than_agree_can_be_shared_and_no_more() {
    let models = [model(&[(4, 4); LAYERS]), split_at(6, (4, 4), (8, 8))];
    assert_eq!(shared_layers(&models[0], &models[1]), 6);
    check(&models, &[0, 2]);
    let error = relay(&models, &[0, 7]).unwrap_err();
    insta::assert_snapshot!(error, @"points `mix-000` and `mix-000` must share their first 7 MAC layers, got 6 that agree");
}

#[test]
fn a_network_shares_all_layers_with_itself() {
    let low = model(&[(4, 4); LAYERS]);
    let models = [low.clone(), low];
    check(&models, &[0, LAYERS]);
    let legs = relay(&models, &[0, LAYERS]).unwrap();
    assert!(legs[1].model.steps.is_empty());
}

#[test]
fn a_third_stage_goes_on_from_the_second_which_went_on_from_the_first() {
    let a = model(&[(3, 3); LAYERS]);
    let b = split_at(3, (3, 3), (5, 5));
    let wide: Vec<(u8, u8)> = (0..LAYERS)
        .map(|layer| match layer {
            0..3 => (3, 3),
            3..6 => (5, 5),
            _ => (8, 8),
        })
        .collect();
    let c = model(&wide);
    let other = split_at(2, (3, 3), (6, 7));
    check(&[a.clone(), b.clone(), c.clone()], &[0, 3, 6]);
    // The third stage needs what only the first computed.
    check(&[a.clone(), b.clone(), other], &[0, 3, 2]);
    check(&[a.clone(), b.clone(), c.clone()], &[0, 0, 6]);
    check(&[a, b, c], &[0, 3, 0]);
}

#[test]
fn an_input_that_both_stages_store_alike_is_quantized_once() {
    // The first layers differ in their weights only.
    let (low, high) = (model(&[(3, 6); LAYERS]), split_at(1, (4, 6), (8, 8)));
    let models = [low.clone(), high.clone()];
    let legs = relay(&models, &[0, 0]).unwrap();
    assert_eq!(*legs[1].model, high);
    let handoff = legs[1].handoff.as_ref().unwrap();
    assert_eq!((&handoff.kept, &handoff.given), (&low.inputs, &high.inputs));
    check(&models, &[0, 0]);
    // From the first stage to the third, past one that goes on from its layers.
    let between = split_at(3, (3, 6), (5, 5));
    check(&[low.clone(), between, high], &[0, 3, 0]);
    // Other codes of the input, other maps.
    let models = [low, model(&[(3, 4); LAYERS])];
    assert_eq!(relay(&models, &[0, 0]).unwrap()[1].handoff, None);
}

#[test]
fn points_that_differ_in_every_layer_share_none() {
    let (low, high) = (model(&[(3, 3); LAYERS]), model(&[(3, 4); LAYERS]));
    assert_eq!(shared_layers(&low, &high), 0);
    assert!(relay(&[low, high], &[0, 1]).is_err());
}
