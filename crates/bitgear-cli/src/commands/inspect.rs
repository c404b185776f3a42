//! `bitgear inspect`: what is in a model.

use bitgear::onnx;
use bitgear::sensitivity::Sensitivity;
use serde::Serialize;

use super::sensitivity;

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
    let graph = onnx::import_file(&options.model).map_err(|error| {
        let failure = Failure::new(format!("model `{}`: {error}", options.model.display()));
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })?;
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
        sensitivity: if options.sensitivity {
            Some(sensitivity::measure(&graph, options)?)
        } else {
            None
        },
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
    Ok(())
}
