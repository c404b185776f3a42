//! A folder of images, one folder a class.

use std::fs;
use std::path::{Path, PathBuf};

use image::{ColorType, ImageReader, Limits};

use super::{DataError, Dataset, Samples};

/// Reads all images below `folder`. Classes are numbered in the order of their folders' names,
/// images lie in the order of theirs. Grey images have one channel, all others three (RGB), stored
/// (C, H, W).
pub(super) fn read_folder(folder: &Path) -> Result<Dataset, DataError> {
    let classes: Vec<PathBuf> = entries(folder)?.into_iter().filter(|p| p.is_dir()).collect();
    if classes.is_empty() {
        return Err(DataError::invalid(folder, "expected one folder of images for each class"));
    }
    let (mut samples, mut labels, mut shape) = (Vec::new(), Vec::new(), None);
    for (label, class) in classes.iter().enumerate() {
        for path in entries(class)?.into_iter().filter(|p| p.is_file()) {
            let bytes = fs::read(&path).map_err(|e| DataError::read(&path, e))?;
            let (this, values) = decode(&path, &bytes)?;
            let shape = *shape.get_or_insert(this);
            if this != shape {
                return Err(DataError::invalid(
                    &path,
                    format!(
                        "all images must have one size (C, H, W): expected {shape:?}, got {this:?}"
                    ),
                ));
            }
            samples.extend(values);
            labels.push(label as u32);
        }
    }
    let Some([c, h, w]) = shape else {
        return Err(DataError::invalid(folder, "the classes' folders hold no images"));
    };
    Dataset::new(folder, &[labels.len(), c, h, w], Samples::U8(samples), Some(labels))
}

/// Reads one image, without a label.
pub(super) fn read_image(path: &Path) -> Result<Dataset, DataError> {
    let bytes = fs::read(path).map_err(|e| DataError::read(path, e))?;
    let ([c, h, w], values) = decode(path, &bytes)?;
    Dataset::new(path, &[1, c, h, w], Samples::U8(values), None)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = |e: std::io::Error| DataError::read(folder, e);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(read)?
        .map(|e| e.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .map_err(read)?;
    paths.retain(|p| p.file_name().is_some_and(|n| !n.to_string_lossy().starts_with('.')));
    paths.sort();
    Ok(paths)
}

fn decode(path: &Path, bytes: &[u8]) -> Result<([usize; 3], Vec<u8>), DataError> {
    let mut reader = ImageReader::new(std::io::Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| DataError::read(path, e))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(1 << 14);
    limits.max_image_height = Some(1 << 14);
    reader.limits(limits);
    let image = reader.decode().map_err(|e| DataError::read(path, e))?;
    let (height, width) = (image.height() as usize, image.width() as usize);
    if matches!(image.color(), ColorType::L8 | ColorType::L16 | ColorType::La8 | ColorType::La16) {
        return Ok(([1, height, width], image.into_luma8().into_raw()));
    }
    let pixels = image.into_rgb8().into_raw();
    let planes = (0..3).flat_map(|c| pixels.iter().skip(c).step_by(3).copied()).collect();
    Ok(([3, height, width], planes))
}
