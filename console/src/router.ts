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

export const route = computed<Route>(() => {
  const [path = '', query = ''] = hash.value.replace(/^#\/?/, '').split('?', 2);
  return { path: path.split('/').filter(Boolean).map(decoded), query: new URLSearchParams(query) };
});

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

/** Changes parameters of the present address, without a step in the history of the browser. */
export function adjust(query: Query): void {
  const { path, query: before } = route.peek();
  const to = address(path, { ...Object.fromEntries(before), ...query });
  if (to === location.hash) return;
  history.replaceState(null, '', to);
  hash.value = to;
}
