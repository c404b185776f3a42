//! Real third-party models and data, where they lie beside the checkout, and the demo's own.

use std::path::{Path, PathBuf};

use bitgear::data::{Dataset, Preprocess, Source};
use bitgear::graph::Graph;
use bitgear::onnx;

/// A model with data that fits it.
pub(crate) struct Real {
    pub(crate) name: &'static str,
    pub(crate) data: &'static str,
    scale: f32,
    mean: &'static [f32],
    std: &'static [f32],
}

const MEAN: &[f32] = &[0.485, 0.456, 0.406];
const STD: &[f32] = &[0.229, 0.224, 0.225];

pub(crate) const VIT: Real = Real {
    name: "mnist_vit_d64x6",
    data: "mnist_test_5000",
    scale: 1.0 / 255.0,
    mean: &[0.1307],
    std: &[0.3081],
};

pub(crate) const REAL: [Real; 7] = [
    VIT,
    Real {
        name: "cifar10_resnet20",
        data: "cifar10_test_5000",
        scale: 1.0 / 255.0,
        mean: MEAN,
        std: STD,
    },
    Real {
        name: "cifar10_resnet32",
        data: "cifar10_test_5000",
        scale: 1.0 / 255.0,
        mean: MEAN,
        std: STD,
    },
    Real {
        name: "mlperftiny_ic_resnet8",
        data: "cifar10_test_5000",
        scale: 1.0,
        mean: &[0.0],
        std: &[1.0],
    },
    Real {
        name: "mlperftiny_kws_dscnn",
        data: "speech_commands_600",
        scale: 1.0,
        mean: &[83.0],
        std: &[1.710_267_6],
    },
    Real {
        name: "mnist_cnn_zoo",
        data: "mnist_test_5000",
        scale: 1.0 / 255.0,
        mean: &[0.0],
        std: &[1.0],
    },
    Real {
        name: "imagenet_efficientnet_lite0",
        data: "imagenet_sample_a_250",
        scale: 1.0,
        mean: &[127.0],
        std: &[128.0],
    },
];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder of real models and data; says loudly which test is skipped without it.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
pub(crate) fn shared(test: &str) -> Option<PathBuf> {
    let folder = root().join("../shared");
    if folder.join("models").is_dir() && folder.join("datasets").is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED {test}: folder `{}` is absent", folder.display());
    None
}

impl Real {
    pub(crate) fn graph(&self, shared: &Path) -> Graph {
        onnx::import_file(&shared.join(format!("models/{}.onnx", self.name))).unwrap()
    }

    pub(crate) fn dataset(&self, shared: &Path) -> Dataset {
        Dataset::read(&Source::Path(shared.join(format!("datasets/{}.npz", self.data)))).unwrap()
    }

    pub(crate) fn preprocess(&self) -> Preprocess {
        Preprocess { scale: self.scale, mean: self.mean.to_vec(), std: self.std.to_vec() }
    }
}
