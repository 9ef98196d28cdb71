//! Per-user data in pool mode: `/users`, `/settings`, `/userdata`, `/v2/userdata`, each with and
//! without `/api`, answered by the gateway as ComfyUI answers them.
//!
//! Everything lies in `state_dir/users/`, a folder for each user as in ComfyUI's own user
//! directory (`comfy.settings.json` in it), and is on the disk before a write is answered. What
//! the backends had is taken over once, see [`import`].
//!
//! **Bounds.** A body is at most as long as the caller allows, settings 16 MiB, a user's files and
//! folders 100,000, users 10,000, listings as long as that allows. **Hazards.** Names come from
//! clients: `place` keeps them in their user's folder. Merging settings reads, changes and
//! writes a file, and so holds the user's lock; nothing but blocking calls happens under it.
//!
//! It differs from ComfyUI 0.8.0 where that would run a user's file in everybody's browser: HTML,
//! XML and SVG are sent as downloads, as later versions do.

mod disk;
mod files;
pub mod import;
mod list;
mod place;
mod refusal;
mod route;
mod settings;
#[cfg(test)]
mod tests;
mod users;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{OriginalUri, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::comfy::lenient;
use refusal::{Answer, Refusal, empty, no_such_route, ok_json};
use users::Users;

#[cfg(any(test, fuzzing))]
pub(crate) use place::below as place_below;
pub use route::Route;

/// Bytes of a user's settings at most, and of a request that changes them.
const MAX_SETTINGS: usize = 16 << 20;
/// Files and folders of a user at most.
const MAX_ENTRIES: usize = 100_000;
/// Where files are written before they are put in place; no user's id.
const PARTIALS: &str = ".partial";
const USERS: &str = "users.json";

/// The users' data.
#[derive(Debug)]
pub struct UserData {
    root: PathBuf,
    max_body: AtomicU64,
    users: ArcSwap<Users>,
    /// Held while the users are changed.
    changing_users: Mutex<()>,
    folders: Mutex<HashMap<String, Arc<Folder>>>,
    importing: import::Importing,
}

/// A user's folder, as far as it is not on the disk.
#[derive(Debug, Default)]
struct Folder {
    /// Held while the folder is changed: how many entries it has, once they were counted.
    entries: Mutex<Option<usize>>,
}

impl UserData {
    /// Opens the users' data in `state_dir`, made when missing. A body may have `max_body` bytes.
    /// Blocks.
    pub fn open(state_dir: &Path, max_body: u64) -> io::Result<Arc<Self>> {
        let root = std::path::absolute(state_dir)?.join("users");
        disk::make_folders(&root)?;
        let root = root.canonicalize()?;
        let partials = root.join(PARTIALS);
        if partials.exists() {
            std::fs::remove_dir_all(&partials)?;
        }
        disk::make_folders(&partials)?;
        let users = Users::read(&root.join(USERS))?;
        Ok(Arc::new(Self {
            importing: import::Importing::of(&root),
            root,
            max_body: AtomicU64::new(max_body),
            users: ArcSwap::from_pointee(users),
            changing_users: Mutex::default(),
            folders: Mutex::default(),
        }))
    }

    /// Allows bodies of another length from now on.
    pub fn set_max_body(&self, bytes: u64) {
        self.max_body.store(bytes, Relaxed);
    }

    /// Whether the router answers for this path, which may carry `/api` and a query.
    pub fn owns(path: &str) -> bool {
        Route::of(path).is_some()
    }

    /// The routes.
    pub fn router(self: &Arc<Self>) -> Router {
        let paths = [
            "/users",
            "/settings",
            "/settings/{id}",
            "/userdata",
            "/userdata/{file}",
            "/userdata/{file}/move/{dest}",
            "/v2/userdata",
        ];
        let mut router = Router::new();
        for path in paths {
            router = router.route(path, any(serve)).route(&format!("/api{path}"), any(serve));
        }
        router.with_state(Arc::clone(self))
    }

    fn folder_of(&self, user: &str) -> PathBuf {
        self.root.join(user)
    }

    fn partials(&self) -> PathBuf {
        self.root.join(PARTIALS)
    }

    /// The lock of a user, who is known: so there are no more of them than users.
    fn lock_of(&self, user: &str) -> Arc<Folder> {
        let mut folders = self.folders.lock();
        Arc::clone(folders.entry(user.to_owned()).or_default())
    }

    /// Changes the users; they are on the disk when this returns. Blocks.
    fn change_users<T>(&self, change: impl FnOnce(&mut Users) -> T) -> io::Result<T> {
        let _one_at_a_time = self.changing_users.lock();
        let mut users = Users::clone(&self.users.load());
        let result = change(&mut users);
        if users != **self.users.load() || !self.root.join(USERS).exists() {
            disk::write(&self.partials(), &self.root.join(USERS), &users.to_bytes())?;
            self.users.store(Arc::new(users));
        }
        Ok(result)
    }

    /// Whether it was decided if there are several users.
    fn is_decided(&self) -> bool {
        self.root.join(USERS).exists()
    }
}

/// A request with what it is about.
struct Asked {
    data: Arc<UserData>,
    user: Option<String>,
    uri: Uri,
    headers: HeaderMap,
}

impl Asked {
    /// Whose data it is about; nobody's is what ComfyUI does not catch.
    fn user(&self) -> Result<&str, Refusal> {
        self.user.as_deref().ok_or(Refusal::Crash)
    }

    /// The first value of a query parameter, decoded.
    fn query(&self, name: &str) -> Option<String> {
        let raw = self.uri.query().unwrap_or_default().as_bytes();
        let found = url::form_urlencoded::parse(raw).find(|(key, _)| key == name);
        found.map(|(_, value)| value.into_owned())
    }

    fn is_true(&self, name: &str) -> bool {
        self.query(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

async fn serve(
    State(data): State<Arc<UserData>>,
    OriginalUri(uri): OriginalUri,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let user = data.users.load().of_request(&parts.headers);
    let asked = Asked { data, user, uri: uri.clone(), headers: parts.headers };
    let answer = answer(&parts.method, Route::of(uri.path()), asked, body).await;
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    cache_headers(uri.path(), &mut response);
    if parts.method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

async fn answer(method: &Method, route: Option<Route>, asked: Asked, body: Body) -> Answer {
    let reading = matches!(*method, Method::GET | Method::HEAD);
    match (method, route) {
        (&Method::OPTIONS, _) => Ok(empty(StatusCode::OK)),
        (_, Some(Route::Users)) if reading => Ok(users(&asked)),
        (&Method::POST, Some(Route::Users)) => add_user(asked, body).await,
        (_, Some(Route::Settings)) if reading => settings::all(asked).await,
        (&Method::POST, Some(Route::Settings)) => settings::merge(asked, body).await,
        (_, Some(Route::Setting(id))) if reading => settings::one(asked, id).await,
        (&Method::POST, Some(Route::Setting(id))) => settings::set(asked, id, body).await,
        (_, Some(Route::List)) if reading => list::list(asked).await,
        (_, Some(Route::ListV2)) if reading => list::list_v2(asked).await,
        (_, Some(Route::File(name))) if reading => files::get(asked, name).await,
        (&Method::POST, Some(Route::File(name))) => files::put(asked, name, body).await,
        (&Method::DELETE, Some(Route::File(name))) => files::delete(asked, name).await,
        (&Method::POST, Some(Route::Move(from, to))) => files::rename(asked, from, to).await,
        _ => Ok(no_such_route(reading)),
    }
}

/// `GET /users`.
fn users(asked: &Asked) -> Response {
    let users = asked.data.users.load();
    if users.multi {
        return ok_json(&users.to_json());
    }
    let migrated = asked.data.folder_of(users::DEFAULT).exists();
    ok_json(&json!({"storage": "server", "migrated": migrated}))
}

/// `POST /users`.
async fn add_user(asked: Asked, body: Body) -> Answer {
    let body = json_body(&asked, body).await?;
    let name = body.get("username").and_then(Value::as_str).ok_or(Refusal::Crash)?.to_owned();
    let added = blocking(move || Ok(asked.data.change_users(|users| users.add(&name))?)).await?;
    added.map(|id| ok_json(&id.into())).map_err(Refusal::Error)
}

/// A body as JSON, whatever it calls itself.
async fn json_body(asked: &Asked, body: Body) -> Result<Value, Refusal> {
    let limit = asked.data.max_body.load(Relaxed).min(MAX_SETTINGS as u64);
    let bytes = to_bytes(body, usize::try_from(limit).unwrap_or(MAX_SETTINGS)).await;
    let bytes = bytes.map_err(|_| Refusal::TooLarge(limit))?;
    lenient::from_slice(&bytes).map_err(|_| Refusal::Crash)
}

/// Runs what blocks on the disk away from the threads that serve.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Refusal::Crash)?
}

/// ComfyUI's cache headers, which go by the suffix of the path.
fn cache_headers(path: &str, response: &mut Response) {
    const IMAGES: [&str; 9] =
        [".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"];
    let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    let name = path.rsplit('/').next().unwrap_or_default();
    let ends = |suffix: &str| name.ends_with(suffix);
    let index = name.starts_with("index") && ends(".json");
    let image = IMAGES.iter().any(|suffix| name.to_ascii_lowercase().ends_with(suffix));
    let value = match response.status().as_u16() {
        _ if ends(".js") || ends(".css") || index => "no-cache",
        404 if image => "public, max-age=3600",
        200..=206 | 301 | 308 if image => "public, max-age=86400",
        _ => return,
    };
    let value = HeaderValue::from_static(value);
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(value);
}
