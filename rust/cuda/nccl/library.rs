//! Finding NCCL: the file that the environment names, or the first usable one of the copy that this process
//! has loaded (torch's), those of installed packages, and the system's.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libloading::Library;

use super::table::{Table, Version};
use crate::cuda::error::DeviceError;
use crate::cuda::loading;

/// Names a file, or a folder with one. If it is set, nothing else is tried.
pub const VARIABLE: &str = "DUALPIPE_NCCL_LIBRARY";
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// NCCL, loaded, whole and new enough; never unloaded.
pub struct Nccl {
    pub table: Table,
    pub version: Version,
    pub path: Option<PathBuf>,
}

/// What is known of where NCCL is.
struct Known {
    folders: Vec<PathBuf>,
    /// Once found it stays: communicators hold its functions. A failure is not kept.
    found: Option<&'static Nccl>,
}

static KNOWN: Mutex<Known> = Mutex::new(Known { folders: Vec::new(), found: None });

/// Folders of installed packages in which NCCL may lie, in place of those given before.
pub fn look_in(folders: Vec<PathBuf>) {
    known().folders = folders;
}

/// NCCL, or every place looked at and why each would not do.
pub fn nccl() -> Result<&'static Nccl, DeviceError> {
    // The lock is held while looking, so that threads that ask at once load one copy.
    let mut known = known();
    if let Some(found) = known.found {
        return Ok(found);
    }
    let found: &'static Nccl = Box::leak(Box::new(find(&known.folders)?));
    known.found = Some(found);
    Ok(found)
}

fn known() -> MutexGuard<'static, Known> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(folders: &[PathBuf]) -> Result<Nccl, DeviceError> {
    match std::env::var_os(VARIABLE) {
        Some(place) => named(Path::new(&place)),
        None => first_usable(folders),
    }
}

/// The one that the environment names; no other, lest a typing error go unnoticed.
fn named(place: &Path) -> Result<Nccl, DeviceError> {
    // To dlopen, an empty name is this program itself.
    if place.as_os_str().is_empty() {
        return Err(named_by_variable(not_found(vec!["an empty name".to_string()])));
    }
    let file = if place.is_dir() {
        let inside = NAMES.map(|name| place.join(name)).into_iter().find(|file| file.exists());
        inside.ok_or_else(|| not_found(vec![format!("{} in the folder {}", NAMES[0], place.display())]))
    } else {
        Ok(place.to_path_buf())
    };
    let words = |why: String| not_found(vec![format!("{} ({why})", place.display())]);
    // SAFETY: whoever set the variable says that the file is NCCL.
    let library = unsafe { loading::open(file.map_err(named_by_variable)?) };
    usable(library.map_err(|why| named_by_variable(words(why)))?)
}

fn first_usable(folders: &[PathBuf]) -> Result<Nccl, DeviceError> {
    let mut looked = Vec::new();
    let mut unusable = None;
    for (place, library) in places(folders) {
        match library().and_then(|library| usable(library).map_err(Failure::Unusable)) {
            Ok(found) => return Ok(found),
            Err(Failure::NotThere(why)) => looked.push(format!("{place} ({why})")),
            Err(Failure::Unusable(error)) => {
                looked.push(format!("{place} ({error})"));
                unusable.get_or_insert(error);
            }
        }
    }
    // A file that is there and will not do is the better thing to tell than all that is not there.
    Err(unusable.unwrap_or_else(|| not_found(looked)))
}

enum Failure {
    NotThere(String),
    Unusable(DeviceError),
}

type Opening = Box<dyn Fn() -> Result<Library, Failure>>;

/// Where to look without being told, in order, each with how to open it.
fn places(folders: &[PathBuf]) -> Vec<(String, Opening)> {
    let loaded: Opening = Box::new(|| {
        loading::open_if_loaded(NAMES[0]).ok_or_else(|| Failure::NotThere("not loaded".to_string()))
    });
    let mut places = vec![("a copy that this process has loaded".to_string(), loaded)];
    let packages = folders.iter().map(|folder| folder.join(NAMES[0]).into_os_string());
    for file in packages.chain(NAMES.map(Into::into)) {
        let words = file.to_string_lossy().into_owned();
        // SAFETY: NCCL's own name in a package's folder or where the system's loader looks.
        let open = move || unsafe { loading::open(&file) }.map_err(Failure::NotThere);
        places.push((words, Box::new(open)));
    }
    places
}

/// NCCL with all functions, if the library is that.
fn usable(library: Library) -> Result<Nccl, DeviceError> {
    // Never unloaded, usable or not: NCCL has threads of its own, and leaves state behind.
    let library: &'static Library = Box::leak(Box::new(library));
    let path = loading::path_of(library, "ncclGetVersion");
    let words = || path.as_ref().map_or_else(|| "the library".to_string(), |path| path.display().to_string());
    let missing = |symbols| DeviceError::MissingSymbols { library: words(), symbols };
    let table = Table::resolve(library).map_err(missing)?;
    let version = table.version()?;
    if version < Version::LEAST {
        let (found, least) = (format!("NCCL {version}"), Version::LEAST.to_string());
        return Err(DeviceError::TooOld { library: words(), found, least });
    }
    Ok(Nccl { table, version, path })
}

fn not_found(looked: Vec<String>) -> DeviceError {
    DeviceError::NotFound { library: "NCCL", looked }
}

fn named_by_variable(error: DeviceError) -> DeviceError {
    match error {
        DeviceError::NotFound { library, looked } => {
            let looked = looked.into_iter().map(|place| format!("{place}, which {VARIABLE} names")).collect();
            DeviceError::NotFound { library, looked }
        }
        other => other,
    }
}
