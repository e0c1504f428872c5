import { signal } from '@preact/signals';

/*
 * With what the page calls. The key stays in this tab: it is gone when the tab is closed, and no other site, tab or file
 * gets to see it.
 */

const KEY = 'colloquy.key';
const TENANT = 'colloquy.tenant';

export const key = signal(sessionStorage.getItem(KEY) ?? '');
/** The tenant that an operator has named; empty for the one that the key is of, or the default one. */
export const tenant = signal(sessionStorage.getItem(TENANT) ?? '');
/** Whether the service has refused what the page called with. */
export const isSignedOut = signal(false);

export function signIn(newKey: string): void {
  key.value = newKey;
  sessionStorage.setItem(KEY, newKey);
  isSignedOut.value = false;
}

export function signOut(): void {
  key.value = '';
  sessionStorage.removeItem(KEY);
  isSignedOut.value = true;
}

export function chooseTenant(name: string): void {
  tenant.value = name;
  if (name === '') sessionStorage.removeItem(TENANT);
  else sessionStorage.setItem(TENANT, name);
}

export function credentials(): Record<string, string> {
  return {
    ...(key.value !== '' && { authorization: `Bearer ${key.value}` }),
    ...(tenant.value !== '' && { 'colloquy-tenant': tenant.value }),
  };
}
