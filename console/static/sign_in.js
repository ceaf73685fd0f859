// The sign-in page where people sign in at an issuer's: it sends them there, and takes the token
// with which they come back out of the fragment of the address (`#access_token=…`, or `#error=…`).
//
// Anybody can make a link to this page with a token of their own in it; who followed it would work
// in somebody else's account without knowing. So a token counts at once only where signing in was
// begun in this window a moment ago, and where the issuer repeats what we said then (`state`), if
// `login_url` has a place for it. Any other token is shown as whose it is, and used only if asked
// for. What others wrote into an error is shown only to who began here, too.

"use strict";

{
  const BEGUN = "sign-in-begun"; // in this window: when, and with which state
  const WANTED = "sign-in-next"; // in this browser: a link in a mail opens another window
  const BEGUN_LASTS = 10 * 60_000;
  const WANTED_LASTS = 60 * 60_000;
  const SHOWN_CHARACTERS_MAX = 200;
  const REASONS = {
    access_denied: "Signing in was cancelled, or refused by the identity provider.",
    otp_expired: "The link to sign in was used before, or has expired.",
    server_error: "The identity provider failed.",
    temporarily_unavailable: "The identity provider is not available at the moment.",
  };

  const card = document.getElementById("sign-in");
  const login = document.getElementById("login");
  const said = document.getElementById("said");
  const ask = document.getElementById("ask");
  const form = document.getElementById("by-token");
  let wanted = card.dataset.next;

  // -- what is remembered while people are away ---------------------------------------------------

  function recall(storage, name, lasts) {
    try {
      const found = JSON.parse(storage.getItem(name));
      const age = Date.now() - found.at;
      return age >= 0 && age < lasts ? found : null;
    } catch {
      return null;
    }
  }

  function remember(storage, name, facts) {
    storage.setItem(name, JSON.stringify({ at: Date.now(), ...facts }));
  }

  function begin() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    const state = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const url = login.dataset.url;
    remember(sessionStorage, BEGUN, { state: url.includes("{state}") ? state : null });
    remember(localStorage, WANTED, { path: wanted });
    login.href = url.replaceAll("{state}", state);
  }

  // Whether an answer is to what was begun in this window. It counts once.
  function isOurs(answer) {
    const begun = recall(sessionStorage, BEGUN, BEGUN_LASTS);
    sessionStorage.removeItem(BEGUN);
    return begun !== null && (begun.state === null || answer.get("state") === begun.state);
  }

  // -- coming back --------------------------------------------------------------------------------

  // What stands in the address is taken out of it before anything else.
  function take() {
    const query = new URLSearchParams(location.search);
    const answer = new URLSearchParams(location.hash.slice(1));
    for (const name of ["error", "error_code", "error_description", "state"]) {
      if (!answer.has(name) && query.has(name)) answer.set(name, query.get(name));
    }
    if (!answer.has("access_token") && !answer.has("error")) return;
    const kept = recall(localStorage, WANTED, WANTED_LASTS);
    if (!query.has("next") && kept) wanted = String(kept.path);
    const next = wanted === "/console" ? "" : `?next=${encodeURIComponent(wanted)}`;
    history.replaceState(null, "", location.pathname + next);
    document.getElementById("ended")?.remove(); // there is news
    form.elements.next.value = wanted;
    const ours = isOurs(answer);
    const token = answer.get("access_token");
    if (!token) say(why(answer, ours));
    else if (ours) signIn(token);
    else askAbout(token);
  }

  function why(answer, ours) {
    const known = [answer.get("error_code"), answer.get("error")].find((code) => Object.hasOwn(REASONS, code));
    const words = known ? REASONS[known] : "The identity provider did not sign you in.";
    const more = ours && answer.get("error_description");
    return more ? `${words} It says: “${more.slice(0, SHOWN_CHARACTERS_MAX)}”` : words;
  }

  // Whom a token says that it is about; whether that is so, the server finds out.
  function whose(token) {
    try {
      const part = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
      const bytes = Uint8Array.from(atob(part), (character) => character.charCodeAt(0));
      const claims = JSON.parse(new TextDecoder().decode(bytes));
      const vouched = claims.email_verified === undefined || claims.email_verified === true;
      const name = vouched && claims.email ? claims.email : claims.sub;
      return String(name ?? "").slice(0, SHOWN_CHARACTERS_MAX);
    } catch {
      return "";
    }
  }

  function askAbout(token) {
    const name = whose(token);
    if (!name) {
      say("What came back is no token that can be read: sign in again.");
      return;
    }
    document.getElementById("whose").textContent = name;
    document.getElementById("go-on").onclick = () => signIn(token);
    document.getElementById("leave").onclick = () => say("");
    show(ask);
    document.getElementById("ask-title").focus();
  }

  // -- signing in ---------------------------------------------------------------------------------

  async function signIn(token) {
    show(document.getElementById("busy"));
    try {
      const answer = await fetch("/console/api/session", {
        method: "POST",
        headers: { authorization: `Bearer ${token}` },
      });
      if (answer.ok) {
        localStorage.removeItem(WANTED);
        location.replace(ourPage(wanted));
      } else {
        say((await answer.json()).error.message);
      }
    } catch {
      say("The console does not answer at the moment: try again.");
    }
  }

  function ourPage(path) {
    const page = new URL(path, location.origin);
    const ours = page.origin === location.origin && page.pathname.startsWith("/console");
    return ours ? page.href : "/console";
  }

  // -- what is shown: one of these, or the button, with what is to be said ------------------------

  function show(part) {
    for (const each of [ask, document.getElementById("busy"), document.getElementById("enter")]) {
      each.hidden = each !== part;
    }
    said.hidden = true;
  }

  function say(words) {
    show(document.getElementById("enter"));
    said.hidden = !words;
    said.firstElementChild.textContent = words;
  }

  login.addEventListener("click", begin);
  addEventListener("hashchange", take);
  take();
}
