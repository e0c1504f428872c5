import { computed, signal } from '@preact/signals';

/*
 * Where in the page one is stands behind the `#` of its address: such an address can be kept and sent to others, and ids of
 * sessions are in no log of the server or of a proxy.
 */

export interface Route {
  /** e.g. `['sessions', 'user-alice']` */
  readonly path: readonly string[];
  readonly query: URLSearchParams;
}

const hash = signal(location.hash);
window.addEventListener('hashchange', () => {
  hash.value = location.hash;
});

export const route = computed<Route>(() => routeOf(hash.value));

function routeOf(text: string): Route {
  const [path = '', query = ''] = text.replace(/^#\/?/, '').split('?', 2);
  const parts = path.split('/').filter(Boolean).map(decoded);
  return { path: parts.length > 0 ? parts : ['sessions'], query: new URLSearchParams(query) };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

type Query = Readonly<Record<string, string | number | undefined>>;

/** The address of a view; parameters that are undefined or empty are left out. */
export function address(path: readonly string[], query: Query = {}): string {
  const asked = new URLSearchParams();
  for (const [name, value] of Object.entries(query))
    if (value !== undefined && value !== '') asked.set(name, String(value));
  return `#/${path.map(encodeURIComponent).join('/')}${asked.size > 0 ? `?${asked.toString()}` : ''}`;
}

export function go(path: readonly string[], query?: Query): void {
  location.hash = address(path, query);
}

/**
 * Changes parameters of the address of a view, without a step in the history of the browser; nothing when another view has
 * come meanwhile.
 */
export function adjust(path: readonly string[], query: Query): void {
  // The browser tells of a new address in a later task, and to write over it meanwhile would lead back.
  const { path: present, query: before } = routeOf(location.hash);
  if (address(present) !== address(path)) return;
  const to = address(path, { ...Object.fromEntries(before), ...query });
  if (to === location.hash) return;
  history.replaceState(null, '', to);
  hash.value = to;
}
