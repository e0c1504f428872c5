import { useEffect } from 'preact/hooks';
import { go } from './router.js';

/** What a key does in the present view. */
export type Keys = Readonly<Record<string, () => void>>;

const layers: Keys[] = [];

/** Gives keys a meaning as long as the component is there. The component that came last has the first say. */
export function useKeys(keys: Keys): void {
  useEffect(() => {
    layers.push(keys);
    return () => {
      layers.splice(layers.indexOf(keys), 1);
    };
  });
}

/** Keys that are pressed one after the other, e.g. `g` and `s`. */
const GO: Keys = {
  s: () => {
    go(['sessions']);
  },
  f: () => {
    go(['search']);
  },
  u: () => {
    go(['usage']);
  },
  o: () => {
    go(['operations']);
  },
};
const SECOND_KEY_MS = 1_500;

export const HELP: readonly (readonly [keys: string, what: string])[] = [
  ['g s, g f, g u, g o', 'sessions, search, usage, operations'],
  ['/', 'the field to search or filter in'],
  ['j, k', 'the next, the previous line of a list; in a session the next, the previous event'],
  ['Enter', 'open the line'],
  ['n', 'a new session'],
  ['[, ]', 'one event back, one on'],
  ['.', 'back to now'],
  ['c', 'the field to write in'],
  ['Esc', 'close, or back'],
  ['t', 'dark, light or as the system has it'],
  ['?', 'this list'],
];

/** Listens on the whole page. Keys that are typed into a field, or with Ctrl, Alt or Meta, are left alone. */
export function listenForKeys(): void {
  let wasG = -Infinity;
  document.addEventListener('keydown', (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target as HTMLElement;
    const isField = target.matches('textarea, select, input:not([type=range], [type=checkbox])');
    if (document.querySelector('dialog[open]')) return;
    if (isField) {
      if (event.key === 'Escape') target.blur();
      return;
    }
    if (performance.now() - wasG < SECOND_KEY_MS && GO[event.key]) {
      wasG = -Infinity;
      GO[event.key]?.();
    } else if (event.key === 'g') {
      wasG = performance.now();
      return;
    } else {
      const action = layers.findLast((keys) => keys[event.key])?.[event.key];
      if (!action) return;
      action();
    }
    event.preventDefault();
  });
}

export function focusOn(selector: string): void {
  document.querySelector<HTMLElement>(selector)?.focus();
}
