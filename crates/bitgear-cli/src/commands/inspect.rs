//! `bitgear inspect`: what is in a model.

use std::collections::BTreeMap;

use bitgear::execute::Engine;
use bitgear::graph::Graph;
use bitgear::sensitivity::Sensitivity;
use bitgear_core::kernels::Kernels;
use serde::Serialize;

use super::sensitivity::Mixed;
use super::{plain, sensitivity};

use crate::Failure;
use crate::arguments::Inspect;
use crate::terminal::{count, float_islands, table};

#[derive(Serialize)]
struct Model {
    name: String,
    input: Vec<usize>,
    classes: usize,
    macs: u64,
    parameters: u64,
    layers: Vec<Layer>,
    float_islands: Vec<Island>,
    /// What few bits do to each layer, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    sensitivity: Option<Sensitivity>,
    /// Mixed points that follow from it, cheapest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mixed: Vec<Mixed>,
    /// Bits of weights and activations of each layer, by the mixed point's name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tables: BTreeMap<String, Vec<[u8; 2]>>,
    /// What each layer runs at each point, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernels: Option<Vec<KernelRow>>,
}

#[derive(Serialize)]
struct KernelRow {
    point: String,
    layer: String,
    kernel: String,
}

/// An operator that stays in float.
#[derive(Serialize)]
struct Island {
    name: String,
    kind: &'static str,
}

#[derive(Serialize)]
struct Layer {
    name: String,
    kind: &'static str,
    input: Vec<usize>,
    output: Vec<usize>,
    kernel: [usize; 2],
    macs: u64,
    parameters: u64,
}

pub(crate) fn run(options: &Inspect) -> Result<(), Failure> {
    let graph = plain::import(&options.model)?;
    let layers: Vec<Layer> = graph
        .mac_layers()
        .into_iter()
        .map(|l| Layer {
            name: l.name,
            kind: l.kind.name(),
            input: l.input,
            output: l.output,
            kernel: l.kernel,
            macs: l.macs,
            parameters: l.parameters,
        })
        .collect();
    let measured =
        if options.sensitivity { Some(sensitivity::measure(&graph, options)?) } else { None };
    let (mixed, tables) = match (&measured, &options.accelerator) {
        (Some(measured), Some(accelerator)) => sensitivity::mixed(measured, &graph, accelerator)?,
        _ => (Vec::new(), BTreeMap::new()),
    };
    let model = Model {
        name: graph.name.clone(),
        input: graph.shape(graph.input).to_vec(),
        classes: graph.classes(),
        macs: layers.iter().map(|l| l.macs).sum(),
        parameters: layers.iter().map(|l| l.parameters).sum(),
        layers,
        float_islands: graph
            .float_islands()
            .into_iter()
            .map(|(name, kind)| Island { name: name.to_owned(), kind })
            .collect(),
        sensitivity: measured,
        mixed,
        tables,
        kernels: if options.kernels { Some(kernels(&graph, options)?) } else { None },
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&model)?);
        return Ok(());
    }
    let shape = |dims: &[usize]| dims.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
    let rows: Vec<Vec<String>> = model
        .layers
        .iter()
        .map(|l| {
            vec![
                l.name.clone(),
                l.kind.to_owned(),
                shape(&l.input),
                shape(&l.output),
                shape(&l.kernel),
                count(l.macs),
                count(l.parameters),
            ]
        })
        .collect();
    print!(
        "{}",
        table(&["layer", "kind", "input", "output", "kernel", "MACs", "parameters"], &rows)
    );
    println!(
        "\n{}: input {}, {} classes, {} MACs, {} parameters",
        model.name,
        shape(&model.input),
        model.classes,
        count(model.macs),
        count(model.parameters)
    );
    if let Some(islands) = float_islands(model.float_islands.iter().map(|i| i.kind)) {
        println!("float islands, in float at every bit-width: {islands}");
        for island in &model.float_islands {
            println!("  {} ({})", island.name, island.kind);
        }
    }
    if let Some(measured) = &model.sensitivity {
        print!("\n{}", sensitivity::text(measured, &options.bits));
    }
    if !model.mixed.is_empty() {
        print!("\n{}", sensitivity::mixed_text(&model.mixed, &model.tables));
    }
    if let Some(kernels) = &model.kernels {
        let rows: Vec<Vec<String>> = kernels
            .iter()
            .map(|row| vec![row.point.clone(), row.layer.clone(), row.kernel.clone()])
            .collect();
        print!("\n{}", table(&["point", "layer", "kernel"], &rows));
        println!("\n{} kernels on this CPU", Kernels::detect().name());
    }
    Ok(())
}

/// What this CPU runs for each MAC layer.
fn kernels(graph: &Graph, options: &Inspect) -> Result<Vec<KernelRow>, Failure> {
    let preprocess = options.preprocess.to_library();
    let data = options.data.as_deref();
    let samples = plain::samples(graph, data, &preprocess, 1, plain::CALIBRATION)?;
    let mut rows = Vec::new();
    for model in plain::models(graph, &options.points, &samples)? {
        let engine = Engine::new(&model, Kernels::detect());
        rows.extend(engine.kernels_used().into_iter().filter(|used| used.macs > 0).map(|used| {
            KernelRow { point: model.point.clone(), layer: used.step, kernel: used.kernel }
        }));
    }
    Ok(rows)
}
