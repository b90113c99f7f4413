//! Debian's libmunge, loaded when it is needed: programs that link this crate need not have it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bb_runtime::ThreadPool;

use super::key::random;
use super::munge::{Decoded, MungeError, MungeFuture, Munged};

/// The library's name, of its second interface.
const LIBRARY: &CStr = c"libmunge.so.2";
/// Where another socket than Debian's is named.
const SOCKET_VARIABLE: &str = "BB_MUNGE_SOCKET";
/// Calls that wait for a thread: as many as connections may introduce themselves at a time, twice.
const QUEUE_MAX: usize = 128;
const THREADS: usize = 4;

// Numbers of libmunge's interface.
const OPTION_SOCKET: c_int = 8;
const SUCCESS: c_int = 0;
/// Errors that say nothing of the credential: no memory, no socket, no answer, and the unknown one.
const NOT_NOW: [c_int; 4] = [1, 5, 6, 7];

type Context = *mut c_void;

/// The functions that are used.
struct Library {
    create: unsafe extern "C" fn() -> Context,
    destroy: unsafe extern "C" fn(Context),
    set: unsafe extern "C" fn(Context, c_int, ...) -> c_int,
    explain: unsafe extern "C" fn(Context) -> *const c_char,
    name: unsafe extern "C" fn(c_int) -> *const c_char,
    encode: unsafe extern "C" fn(*mut *mut c_char, Context, *const c_void, c_int) -> c_int,
    decode: unsafe extern "C" fn(
        *const c_char,
        Context,
        *mut *mut c_void,
        *mut c_int,
        *mut libc::uid_t,
        *mut libc::gid_t,
    ) -> c_int,
}

/// The library, loaded once and never unloaded.
fn library() -> Result<&'static Library, MungeError> {
    static LOADED: OnceLock<Result<Library, String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        load().map_err(|why| {
            let name = LIBRARY.to_string_lossy();
            format!("{name} cannot be used ({why}); Debian has it in the package libmunge2")
        })
    });
    loaded.as_ref().map_err(|why| MungeError::NotNow(why.clone()))
}

fn last_error() -> String {
    // SAFETY: takes nothing; the text, where there is one, is good until the next call here.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown reason".to_owned();
    }
    // SAFETY: not null, and ends with a zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn load() -> Result<Library, String> {
    // SAFETY: a name that ends with a zero; the library's constructors do nothing unusual.
    let handle = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(last_error());
    }
    let find = |symbol: &CStr| {
        // SAFETY: an open library and a name that ends with a zero.
        let found = unsafe { libc::dlsym(handle, symbol.as_ptr()) };
        if found.is_null() { Err(last_error()) } else { Ok(found) }
    };
    // SAFETY: the functions of interface 2 of libmunge have these types.
    unsafe {
        use std::mem::transmute;
        Ok(Library {
            create: transmute::<*mut c_void, unsafe extern "C" fn() -> Context>(find(
                c"munge_ctx_create",
            )?),
            destroy: transmute::<*mut c_void, unsafe extern "C" fn(Context)>(find(
                c"munge_ctx_destroy",
            )?),
            set: transmute::<*mut c_void, unsafe extern "C" fn(Context, c_int, ...) -> c_int>(
                find(c"munge_ctx_set")?,
            ),
            explain: transmute::<*mut c_void, unsafe extern "C" fn(Context) -> *const c_char>(
                find(c"munge_ctx_strerror")?,
            ),
            name: transmute::<*mut c_void, unsafe extern "C" fn(c_int) -> *const c_char>(find(
                c"munge_strerror",
            )?),
            encode: transmute::<
                *mut c_void,
                unsafe extern "C" fn(*mut *mut c_char, Context, *const c_void, c_int) -> c_int,
            >(find(c"munge_encode")?),
            decode: transmute::<
                *mut c_void,
                unsafe extern "C" fn(
                    *const c_char,
                    Context,
                    *mut *mut c_void,
                    *mut c_int,
                    *mut libc::uid_t,
                    *mut libc::gid_t,
                ) -> c_int,
            >(find(c"munge_decode")?),
        })
    }
}

/// A context for one call.
struct Call {
    library: &'static Library,
    context: Context,
}

impl Drop for Call {
    fn drop(&mut self) {
        // SAFETY: made by the library, and not used after.
        unsafe { (self.library.destroy)(self.context) };
    }
}

impl Call {
    fn begin(socket: Option<&Path>) -> Result<Self, MungeError> {
        let library = library()?;
        // SAFETY: takes nothing.
        let context = unsafe { (library.create)() };
        if context.is_null() {
            return Err(MungeError::NotNow("libmunge gives no context".to_owned()));
        }
        let call = Self { library, context };
        if let Some(socket) = socket {
            let named = CString::new(socket.as_os_str().as_bytes());
            let named = named.map_err(|_| MungeError::NotNow("a path with a zero".to_owned()))?;
            // SAFETY: the option takes a string, which the library copies.
            let set = unsafe { (library.set)(call.context, OPTION_SOCKET, named.as_ptr()) };
            call.judge(set)?;
        }
        Ok(call)
    }

    fn judge(&self, result: c_int) -> Result<(), MungeError> {
        if result == SUCCESS {
            return Ok(());
        }
        // SAFETY: a context of the library; the text lives as long as it.
        let mut text = unsafe { (self.library.explain)(self.context) };
        if text.is_null() {
            // SAFETY: takes a number; the text is the library's own.
            text = unsafe { (self.library.name)(result) };
        }
        let why = if text.is_null() {
            format!("munge: error {result}")
        } else {
            // SAFETY: not null, and ends with a zero.
            format!("munge: {}", unsafe { CStr::from_ptr(text) }.to_string_lossy())
        };
        if NOT_NOW.contains(&result) {
            Err(MungeError::NotNow(format!("{why} (does munged run on this machine?)")))
        } else {
            Err(MungeError::Refused(why))
        }
    }
}

fn encode(socket: Option<&Path>, payload: &[u8]) -> Result<Vec<u8>, MungeError> {
    let call = Call::begin(socket)?;
    let too_long = |_| MungeError::NotNow("a payload of more than 2 GiB".to_owned());
    let len = c_int::try_from(payload.len()).map_err(too_long)?;
    let mut credential = std::ptr::null_mut();
    // SAFETY: the payload has `len` bytes; the library puts a new string into `credential`.
    let result = unsafe {
        (call.library.encode)(&raw mut credential, call.context, payload.as_ptr().cast(), len)
    };
    let judged = call.judge(result);
    if credential.is_null() {
        return judged.and(Err(MungeError::NotNow("munge gave nothing".to_owned())));
    }
    // SAFETY: a string of the library's, which ends with a zero; it is ours to free.
    let bytes = unsafe {
        let bytes = CStr::from_ptr(credential).to_bytes().to_vec();
        libc::free(credential.cast());
        bytes
    };
    judged.map(|()| bytes)
}

fn decode(socket: Option<&Path>, credential: &[u8]) -> Result<Decoded, MungeError> {
    let call = Call::begin(socket)?;
    let refused = |_| MungeError::Refused("not a credential".to_owned());
    let credential = CString::new(credential).map_err(refused)?;
    let (mut payload, mut len) = (std::ptr::null_mut(), 0);
    let (mut uid, mut gid) = (u32::MAX, u32::MAX);
    // SAFETY: a string that ends with a zero, and places for what the library tells; what it puts
    // into `payload` is new and has `len` bytes.
    let result = unsafe {
        (call.library.decode)(
            credential.as_ptr(),
            call.context,
            &raw mut payload,
            &raw mut len,
            &raw mut uid,
            &raw mut gid,
        )
    };
    // It can be there also with an error: of a credential that is too old, say.
    let mut bytes = Vec::new();
    if !payload.is_null() {
        let len = usize::try_from(len).unwrap_or(0);
        // SAFETY: `len` bytes of the library's, which are ours to free.
        unsafe {
            bytes.extend_from_slice(std::slice::from_raw_parts(payload.cast::<u8>(), len));
            libc::free(payload);
        }
    }
    call.judge(result)?;
    Ok(Decoded { payload: bytes, uid, gid })
}

/// The munged of this machine.
pub struct LibMunge {
    socket: Option<PathBuf>,
    threads: Option<ThreadPool>,
}

impl LibMunge {
    /// For a server: calls go to threads of their own. Without a socket, that of the environment's
    /// `BB_MUNGE_SOCKET`, else Debian's.
    pub fn in_threads(socket: Option<PathBuf>) -> Self {
        Self { threads: Some(ThreadPool::new("munge", THREADS, QUEUE_MAX)), ..Self::inline(socket) }
    }

    /// For a client, which lives in somebody else's process: no threads; each call keeps its
    /// thread waiting, about a fifth of a millisecond.
    pub fn inline(socket: Option<PathBuf>) -> Self {
        let socket = socket.or_else(|| std::env::var_os(SOCKET_VARIABLE).map(PathBuf::from));
        Self { socket, threads: None }
    }

    /// Makes a credential and reads it again: whether munge works here at all.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), MungeError> {
        let socket = self.socket.as_deref();
        decode(socket, &encode(socket, b"Burstbay asks whether munge works")?).map(drop)
    }

    fn call<T: Send + 'static>(
        &self,
        input: Vec<u8>,
        work: fn(Option<&Path>, &[u8]) -> Result<T, MungeError>,
    ) -> MungeFuture<T> {
        let socket = self.socket.clone();
        let Some(threads) = &self.threads else {
            return Box::pin(std::future::ready(work(socket.as_deref(), &input)));
        };
        let done = threads.run(move || work(socket.as_deref(), &input));
        Box::pin(async move {
            done.await.unwrap_or_else(|error| Err(MungeError::NotNow(format!("munge: {error}"))))
        })
    }
}

impl Munged for LibMunge {
    fn encode(&self, payload: Vec<u8>) -> MungeFuture<Vec<u8>> {
        self.call(payload, encode)
    }

    fn decode(&self, credential: Vec<u8>) -> MungeFuture<Decoded> {
        self.call(credential, decode)
    }

    fn nonce(&self) -> Result<[u8; 32], MungeError> {
        random().map_err(|error| MungeError::NotNow(format!("no random bytes: {error}")))
    }
}
