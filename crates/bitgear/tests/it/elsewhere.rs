//! A run whose samples are traced by other machines, shard by shard.

use std::fs;
use std::path::Path;

use bitgear::characterize::{CharacterizeError, Job, Origin, Round, Tracer, characterize_from};
use bitgear::data::{Dataset, Preprocess, Samples, Source, content_hash, sample_hashes};
use bitgear::energy::Storage;

use crate::characterize::{Watch, constraint, files, job, run, small};

/// The samples of a data set in shards of every `shards`-th, with their indices, as machines hold them.
fn shards(data: &Dataset, shards: usize) -> Vec<(Dataset, Vec<usize>)> {
    let shard = |first: usize| {
        let indices: Vec<usize> = (first..data.len()).step_by(shards).rev().collect();
        let pixels = data.batch(&indices, &Preprocess::default());
        let values = Samples::U8(pixels.values().iter().map(|&v| v as u8).collect());
        let labels = data.labels().map(|labels| indices.iter().map(|&i| labels[i]).collect());
        (Dataset::new(Path::new("shard"), pixels.shape(), values, labels).unwrap(), indices)
    };
    (0..shards).map(shard).collect()
}

/// Writes the fragments of all shards as if machines had.
fn trace(plan: &[u8], folder: &Path, shards: &[(Dataset, Vec<usize>)]) {
    let tracer = Tracer::from_bytes(plan).unwrap();
    for (index, (shard, indices)) in shards.iter().enumerate() {
        let fragment = tracer.trace(shard, indices, &Watch::new(0)).unwrap().unwrap();
        fs::write(folder.join(format!("{index}.parquet")), fragment).unwrap();
    }
}

/// What one machine knows of samples on others: shape, labels and hash.
fn outline(data: &Dataset, shards: &[(Dataset, Vec<usize>)]) -> Dataset {
    let mut hashes = vec![[0; 32]; data.len()];
    for (shard, indices) in shards {
        let pixels = shard.batch(&(0..shard.len()).collect::<Vec<_>>(), &Preprocess::default());
        let values = Samples::U8(pixels.values().iter().map(|&v| v as u8).collect());
        for (hash, &index) in sample_hashes(shard.sample_shape(), &values).into_iter().zip(indices)
        {
            hashes[index] = hash;
        }
    }
    let shape = [data.len(), 1, 28, 28];
    let hash = content_hash(&shape, "u1", &hashes, data.labels());
    assert_eq!(hash, data.sha256());
    let labels = data.labels().map(<[u32]>::to_vec);
    Dataset::outline(Path::new("elsewhere"), hash, &shape, labels).unwrap()
}

#[test]
fn samples_on_other_machines_give_the_bytes_of_samples_that_are_here() {
    let here = tempfile::tempdir().unwrap();
    let mut here_job = job(here.path(), &["w8a8"]);
    here_job.mirror = true;
    run(&here_job, &Watch::new(1000), 2);

    let data = Dataset::read(&small()).unwrap();
    let shards = shards(&data, 3);
    let outline = outline(&data, &shards);
    let there = tempfile::tempdir().unwrap();
    let kept = tempfile::tempdir().unwrap();
    let there_job =
        Job { data: Source::Memory(outline), out: there.path().to_owned(), ..here_job.clone() };
    let elsewhere = |round: Round, plan: Vec<u8>, folder: &Path| {
        assert_eq!(round, Round::Trace);
        trace(&plan, folder, &shards);
        trace(&plan, kept.path(), &shards);
        Ok(())
    };
    characterize_from(&there_job, Origin::Elsewhere(&elsewhere), &Watch::new(1000)).unwrap();
    assert_eq!(files(there.path()), files(here.path()));

    // The fragments decide anywhere, but only for their own run, and all of them.
    let again = tempfile::tempdir().unwrap();
    let done = |job: &Job| characterize_from(job, Origin::Done(kept.path()), &Watch::new(0));
    let again_job = Job { out: again.path().to_owned(), ..here_job };
    done(&again_job).unwrap();
    assert_eq!(files(again.path()), files(here.path()));
    let fails = |job: &Job, message: &str| {
        let error = done(job).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    fails(&Job { seed: 2, ..again_job.clone() }, "of another run");
    let nested = Job { storage: Storage::Nested, ..there_job.clone() };
    fails(&nested, "storage `nested`");
    let more = Some(vec!["w4a4".parse().unwrap()]);
    fails(&Job { points: more, ..again_job.clone() }, "point `w4a4` was not traced");
    fs::remove_file(kept.path().join("1.parquet")).unwrap();
    fails(&again_job, "is missing");
    let outlined = characterize_from(&there_job, Origin::Here, &Watch::new(0));
    assert!(matches!(outlined, Err(CharacterizeError::Job(reason)) if reason.contains("machines")));
}

#[test]
fn samples_without_labels_and_networks_that_share_weights_run_on_other_machines_too() {
    let here = tempfile::tempdir().unwrap();
    let labelled = Dataset::read(&small()).unwrap();
    let all: Vec<usize> = (0..labelled.len()).collect();
    let pixels = labelled.batch(&all, &Preprocess::default());
    let values = Samples::U8(pixels.values().iter().map(|&v| v as u8).collect());
    let data = Dataset::new(Path::new("here"), pixels.shape(), values, None).unwrap();
    let here_job = Job {
        data: Source::Memory(data.clone()),
        storage: Storage::Nested,
        constraint: constraint(0.08, None),
        ..job(here.path(), &["w2a2", "w8a8"])
    };
    let found = run(&here_job, &Watch::new(1000), 2);
    assert_eq!(found.summary.storage.kind, Storage::Nested, "the third round has something to do");

    let shards = shards(&data, 3);
    let there = tempfile::tempdir().unwrap();
    let outline = Source::Memory(outline(&data, &shards));
    let there_job = Job { data: outline, out: there.path().to_owned(), ..here_job };
    let rounds = std::cell::RefCell::new(Vec::new());
    let elsewhere = |round: Round, plan: Vec<u8>, folder: &Path| {
        rounds.borrow_mut().push(round);
        trace(&plan, folder, &shards);
        Ok(())
    };
    characterize_from(&there_job, Origin::Elsewhere(&elsewhere), &Watch::new(1000)).unwrap();
    assert_eq!(*rounds.borrow(), [Round::Labels, Round::Trace, Round::Nested]);
    assert_eq!(files(there.path()), files(here.path()));
}

#[test]
fn a_damaged_tracer_is_an_error_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), &["w8a8"]);
    let keep = |_: Round, plan: Vec<u8>, place: &Path| {
        fs::write(place.join("plan"), plan).unwrap();
        Err(CharacterizeError::Cancelled)
    };
    let ended = characterize_from(&job, Origin::Elsewhere(&keep), &Watch::new(1000));
    assert!(matches!(ended, Err(CharacterizeError::Cancelled)));
    let plan = fs::read(folder.path().join("fragments/plan")).unwrap();
    assert!(Tracer::from_bytes(&plan).is_ok());
    for cut in [0, 7, 8, 100, plan.len() / 2, plan.len() - 1] {
        assert!(Tracer::from_bytes(&plan[..cut]).is_err(), "{cut} bytes");
    }
}
