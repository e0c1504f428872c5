import { useEffect, useRef, useState } from 'preact/hooks';
import { chooseTenant, isSignedOut, key, signIn, signOut, tenant } from './api/access.js';
import { trouble } from './api/client.js';
import { HELP, useKeys } from './keys.js';
import { OperationsView } from './operations/operations-view.js';
import { address, type Route, route } from './router.js';
import { SearchView } from './search/search-view.js';
import { SessionView } from './session/session-view.js';
import { SessionsView } from './sessions/sessions-view.js';
import { nextTheme, theme } from './theme.js';
import { announcement } from './ui/announce.js';
import { Dialog } from './ui/dialog.js';
import { UsageView } from './usage/usage-view.js';

const VIEWS = [
  { path: 'sessions', name: 'Sessions' },
  { path: 'search', name: 'Search' },
  { path: 'usage', name: 'Usage' },
  { path: 'operations', name: 'Operations' },
] as const;

export function App() {
  const [isHelp, setHelp] = useState(false);
  useKeys({
    '?': () => {
      setHelp(true);
    },
    t: nextTheme,
  });
  const { path } = route.value;
  const name = path[0] ?? 'sessions';
  useTitleAndFocus(path);
  return (
    <>
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          // The address is the place in the page, which must stay.
          event.preventDefault();
          document.getElementById('main')?.focus();
        }}
      >
        Skip to the content
      </a>
      <header class="top">
        <a class="brand" href={address(['sessions'])}>
          Colloquy
        </a>
        <nav aria-label="Views">
          {VIEWS.map((view) => (
            <a
              key={view.path}
              href={address([view.path])}
              aria-current={view.path === name ? 'page' : undefined}
            >
              {view.name}
            </a>
          ))}
        </nav>
        <div class="tools">
          <TenantField />
          <button
            type="button"
            class="quiet"
            onClick={nextTheme}
            aria-label={`Colours: ${theme.value}. Change`}
          >
            {theme.value === 'dark' ? '☾' : theme.value === 'light' ? '☀' : '◐'}
          </button>
          <button
            type="button"
            class="quiet"
            aria-label="Keys"
            onClick={() => {
              setHelp(true);
            }}
          >
            ?
          </button>
          {key.value !== '' && !isSignedOut.value && (
            <button type="button" class="quiet" onClick={signOut}>
              Sign out
            </button>
          )}
        </div>
      </header>
      <Trouble />
      <main id="main" tabIndex={-1}>
        {/* A view belongs to its tenant and key: with another one it begins anew. */}
        {isSignedOut.value ? <SignIn /> : <View key={`${tenant.value} ${key.value}`} {...route.value} />}
      </main>
      <div class={`toast ${announcement.value?.isError ? 'error' : ''}`} role="status" aria-live="polite">
        {announcement.value?.text}
      </div>
      {isHelp && (
        <Dialog
          title="Keys"
          onClose={() => {
            setHelp(false);
          }}
        >
          <dl class="keys">
            {HELP.map(([keys, what]) => (
              <div key={keys}>
                <dt>
                  <kbd>{keys}</kbd>
                </dt>
                <dd>{what}</dd>
              </div>
            ))}
          </dl>
          <div class="buttons">
            <button
              type="button"
              class="primary"
              onClick={() => {
                setHelp(false);
              }}
            >
              Close
            </button>
          </div>
        </Dialog>
      )}
    </>
  );
}

function View(current: Route) {
  const [name = 'sessions', id] = current.path;
  switch (name) {
    case 'sessions':
      return id === undefined ? (
        <SessionsView {...current} />
      ) : (
        <SessionView key={id} id={id} query={current.query} />
      );
    case 'search':
      return <SearchView {...current} />;
    case 'usage':
      return <UsageView {...current} />;
    case 'operations':
      return <OperationsView {...current} />;
    default:
      return (
        <div class="view empty">
          <h1 tabIndex={-1}>There is no such view</h1>
          <p>
            <a href={address(['sessions'])}>Sessions</a>
          </p>
        </div>
      );
  }
}

/** Another view has another title, and who listens to the page or uses its keys begins at the top of it. */
function useTitleAndFocus(path: readonly string[]): void {
  const place = path.join('/');
  const before = useRef(place);
  useEffect(() => {
    document.title = [path[1], VIEWS.find((view) => view.path === (path[0] ?? 'sessions'))?.name, 'Colloquy']
      .filter((part) => part !== undefined)
      .join(' · ');
    if (before.current === place) return;
    before.current = place;
    if (!document.querySelector('dialog[open]')) document.querySelector<HTMLElement>('main h1')?.focus();
  }, [place]);
}

/** Whose sessions are shown: for operators, and where no key is needed. */
function TenantField() {
  return (
    <input
      class="tenant"
      aria-label="Tenant"
      placeholder="tenant"
      spellcheck={false}
      maxLength={63}
      value={tenant.value}
      onChange={(event) => {
        chooseTenant(event.currentTarget.value.trim());
      }}
    />
  );
}

function Trouble() {
  const [isOffline, setOffline] = useState(!navigator.onLine);
  useEffect(() => {
    const look = (): void => {
      setOffline(!navigator.onLine);
    };
    window.addEventListener('online', look);
    window.addEventListener('offline', look);
    return () => {
      window.removeEventListener('online', look);
      window.removeEventListener('offline', look);
    };
  }, []);
  const problem = trouble.value;
  const text = isOffline
    ? 'You are offline. What was loaded stays; the rest comes by itself when the network is back.'
    : problem?.status === 0
      ? 'The service does not answer. It is tried again.'
      : problem && `${problem.message} (${problem.code})`;
  return (
    <div class="trouble" role="status">
      {text}
    </div>
  );
}

function SignIn() {
  const [refused] = useState(key.value !== '');
  return (
    <form
      class="view sign-in"
      onSubmit={(event) => {
        event.preventDefault();
        const typed = new FormData(event.currentTarget).get('key');
        if (typeof typed === 'string' && typed !== '') signIn(typed.trim());
      }}
    >
      <h1 tabIndex={-1}>Sign in</h1>
      <p>
        This service needs an API key or a token. It is kept in this tab alone, and is gone when you close it.
      </p>
      {refused && <p role="alert">The key is not known, or it has run out or was revoked.</p>}
      <label>
        <span>API key or token</span>
        <input name="key" type="password" autocomplete="off" required spellcheck={false} />
      </label>
      <button type="submit" class="primary">
        Sign in
      </button>
    </form>
  );
}
