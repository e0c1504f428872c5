// Jest may load this file once for the setup and once for the teardown: module variables would not be shared.
const shared = globalThis as { colloquyTeardown?: () => Promise<void> };

export function setTeardown(teardown: () => Promise<void>): void {
  shared.colloquyTeardown = teardown;
}

export default async function globalTeardown(): Promise<void> {
  await shared.colloquyTeardown?.();
}
