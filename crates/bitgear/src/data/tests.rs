use std::fs;
use std::io::Write as _;

use super::*;

/// A `.npy` file of version 1 with the given header fields and raw data.
fn npy(kind: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let order = if fortran { "True" } else { "False" };
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn pair(x: &[u8], y: &[u8]) -> Result<Dataset, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let (images, labels) = (folder.path().join("x.npy"), folder.path().join("y.npy"));
    fs::write(&images, x).unwrap();
    fs::write(&labels, y).unwrap();
    Dataset::read(&Source::Pair { images, labels })
}

#[test]
fn a_pair_of_arrays_is_read_and_preprocessed_per_channel() {
    let x = npy("|u1", false, "(2, 2, 1, 2)", &[0, 10, 20, 30, 40, 50, 60, 70]);
    let y = npy("<i8", false, "(2,)", &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let data = pair(&x, &y).unwrap();
    assert_eq!((data.len(), data.labels()), (2, Some(&[1, 0][..])));
    let preprocess = Preprocess { scale: 0.5, mean: vec![5.0, 10.0], std: vec![2.0, 5.0] };
    data.check(&[2, 1, 2], &preprocess).unwrap();
    let mut batch = data.batch(&[1, 0], &preprocess);
    assert_eq!(batch.values(), [7.5, 10.0, 4.0, 5.0, -2.5, 0.0, 0.0, 1.0]);
    mirror(&mut batch);
    assert_eq!(batch.values()[..4], [10.0, 7.5, 5.0, 4.0]);
}

#[test]
fn every_bad_array_is_refused_with_what_was_expected() {
    let good = npy("|u1", false, "(2, 2)", &[0; 4]);
    let labels = npy("|u1", false, "(2,)", &[0; 2]);
    let huge = "(99999999999, 99999999999)";
    let mut seen = Vec::new();
    for (x, y) in [
        (npy("|u1", false, "(2, 2)", &[0; 3]), labels.clone()),
        (npy("|u1", true, "(2, 2)", &[0; 4]), labels.clone()),
        (npy(">i4", false, "(2, 2)", &[0; 16]), labels.clone()),
        (npy("<c8", false, "(2, 2)", &[0; 32]), labels.clone()),
        (npy("|u1", false, huge, &[0; 4]), labels.clone()),
        (npy("<f4", false, "(1, 1)", &f32::NAN.to_le_bytes()), npy("|u1", false, "(1,)", &[0])),
        (good.clone(), npy("|u1", false, "(3,)", &[0; 3])),
        (good.clone(), npy("<f4", false, "(2,)", &[0; 8])),
        (good.clone(), npy("|i1", false, "(2,)", &[255, 0])),
        (b"not an array".to_vec(), labels.clone()),
    ] {
        let error = pair(&x, &y).unwrap_err().to_string();
        seen.push(error.split_once(": ").unwrap().1.to_owned());
    }
    insta::assert_snapshot!(seen.join("\n"), @r"
    expected 4 bytes for shape [2, 2], got 3
    expected row-major order, got Fortran order: save it with `numpy.ascontiguousarray`
    expected little-endian numbers, got big-endian
    samples: element type `c8` is not supported, expected u1, i1, i2, u2, i4, i8, f4 or f8
    shape [99999999999, 99999999999] has more than 8589934592 bytes
    sample 0 holds a value that is not finite
    expected 2 labels, one per sample, got 3
    expected integer labels, got element type `f4`
    label -1 is no class
    no NumPy array
    ");
}

#[test]
fn an_archive_without_samples_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.npz");
    // The end-of-directory record of an empty zip archive.
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(b"PK\x05\x06").unwrap();
    file.write_all(&[0; 18]).unwrap();
    let error = Dataset::read(&Source::Path(path)).unwrap_err();
    assert!(
        error.to_string().ends_with("expected an array `x` of samples, got nothing"),
        "{error}"
    );
    assert_eq!(error.hint(), Some("save it with `numpy.savez(path, x=samples, y=labels)`"));
}

#[test]
fn a_shape_that_is_nearly_right_says_what_makes_it_right() {
    let hint = |shape: &[usize], wanted: &[usize]| {
        let samples = Samples::U8(vec![0; shape.iter().product()]);
        let data = Dataset::new(Path::new("x"), &[&[1], shape].concat(), samples, None).unwrap();
        data.check(wanted, &Preprocess::default()).unwrap_err().hint().unwrap().to_owned()
    };
    insta::assert_snapshot!(
        [
            hint(&[32, 16, 3], &[3, 32, 16]),
            hint(&[3, 32, 16], &[32, 16, 3]),
            hint(&[28, 28], &[1, 28, 28]),
            hint(&[784], &[1, 28, 28]),
            hint(&[3, 30, 30], &[3, 32, 32]),
        ]
        .join("\n"),
        @r"
    the network takes channels first: `x.transpose(0, 3, 1, 2)`
    the network takes channels last: `x.transpose(0, 2, 3, 1)`
    add the axis of the channel: `x[:, None]`
    each sample has as many values as the network takes: `x.reshape` does it, if they are in that order
    resize the samples, or export the model for their size
    "
    );
}

#[test]
fn a_folder_of_images_becomes_planes_with_the_folders_as_classes() {
    let folder = tempfile::tempdir().unwrap();
    for (class, color) in [("cat", [1, 2, 3]), ("ant", [4, 5, 6])] {
        fs::create_dir(folder.path().join(class)).unwrap();
        let image = image::RgbImage::from_pixel(2, 1, image::Rgb(color));
        image.save(folder.path().join(class).join("0.png")).unwrap();
    }
    let data = Dataset::read(&Source::Path(folder.path().to_owned())).unwrap();
    assert_eq!(data.sample_shape(), [3, 1, 2]);
    assert_eq!(data.labels(), Some(&[0, 1][..]));
    let batch = data.batch(&[0, 1], &Preprocess::default());
    assert_eq!(batch.values(), [4.0, 4.0, 5.0, 5.0, 6.0, 6.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);

    let one = Dataset::read(&Source::Path(folder.path().join("cat/0.png"))).unwrap();
    assert_eq!((one.len(), one.labels()), (1, None));
    assert_eq!(one.batch(&[0], &Preprocess::default()).values(), &batch.values()[6..]);

    image::GrayImage::new(3, 1).save(folder.path().join("cat/1.png")).unwrap();
    let error = Dataset::read(&Source::Path(folder.path().to_owned())).unwrap_err().to_string();
    assert!(error.contains("expected [3, 1, 2], got [1, 1, 3]"), "{error}");
}

#[test]
fn labels_beyond_the_models_classes_are_named() {
    let data =
        pair(&npy("|u1", false, "(2, 1)", &[0; 2]), &npy("|u1", false, "(2,)", &[0, 7])).unwrap();
    let error = data.labels_of(3).unwrap_err().to_string();
    assert!(
        error.ends_with("label of sample 1 must be below 3, the model's classes, got 7"),
        "{error}"
    );
}

#[test]
fn preprocessing_that_does_not_fit_is_refused() {
    let check = |scale, mean: &[f32], std: &[f32]| {
        Preprocess { scale, mean: mean.to_vec(), std: std.to_vec() }.check(&[3, 2, 2]).is_ok()
    };
    assert!(check(1.0, &[0.0], &[1.0]) && check(1.0, &[0.0; 3], &[1.0; 3]));
    assert!(!check(1.0, &[0.0; 2], &[1.0]) && !check(1.0, &[0.0], &[0.0]));
    assert!(!check(0.0, &[0.0], &[1.0]) && !check(1.0, &[f32::NAN], &[1.0]));
}
