import { Limits, type LimitSettings } from '../../../src/access/limits.js';

const ACME = { tenant: 'acme', actor: 'app' };
const limitsOf = (settings: Partial<LimitSettings>): Limits =>
  new Limits({ tenant: {}, key: {}, ofTenants: new Map(), ...settings }, null);

/** How many of so many requests are let through at once. */
function through(limits: Limits, count: number, caller = ACME): number {
  let passed = 0;
  for (let index = 0; index < count; index += 1) {
    try {
      expect(limits.request(caller)).toBeUndefined();
      passed += 1;
    } catch (error) {
      expect(error).toMatchObject({ code: 'rate-limited', headers: { 'retry-after': '1' } });
    }
  }
  return passed;
}

describe('limits of a process', () => {
  beforeEach(() => {
    jest.useFakeTimers({ doNotFake: ['nextTick', 'setImmediate'] });
  });
  afterEach(() => {
    jest.useRealTimers();
  });

  it('given no limits, when there are many requests, then all go through', () => {
    expect(through(limitsOf({}), 1_000)).toBe(1_000);
  });

  it('given requests a second of a key, when more come, then they are refused until time has passed', () => {
    const limits = limitsOf({ key: { requestsPerSecond: 10 } });
    expect(through(limits, 30)).toBe(10);
    jest.advanceTimersByTime(500);
    expect(through(limits, 30)).toBe(5);
    jest.advanceTimersByTime(60_000);
    expect(through(limits, 30)).toBe(10);
    expect(through(limits, 30, { tenant: 'acme', actor: 'another' })).toBe(10);
    expect(limits.refused.requestsPerSecond).toBe(20 + 25 + 20 + 20);
  });

  it('given requests a second of tenants, when keys of one share them, then another tenant has its own', () => {
    const limits = limitsOf({
      tenant: { requestsPerSecond: 10 },
      ofTenants: new Map([['big', { requestsPerSecond: 50 }]]),
    });
    expect(through(limits, 6) + through(limits, 6, { tenant: 'acme', actor: 'another' })).toBe(10);
    expect(through(limits, 30, { tenant: 'other', actor: 'app' })).toBe(10);
    expect(through(limits, 100, { tenant: 'big', actor: 'app' })).toBe(50);
    expect(through(limits, 30, { tenant: 'constructor', actor: 'app' })).toBe(10);
  });

  it('given replies at the same time, when there are as many, then another one is refused until one has ended', async () => {
    const limits = limitsOf({ tenant: { generations: 3 }, key: { generations: 2 } });
    const leave = await limits.enter('generations', ACME);
    await limits.enter('generations', ACME);
    const third = limits.enter('generations', ACME);
    await expect(third).rejects.toThrow(
      /^2 replies are generated for this key.*server\.limits\.key\.generations/,
    );
    await limits.enter('generations', { tenant: 'acme', actor: 'another' });
    const fourth = limits.enter('generations', { tenant: 'acme', actor: 'third' });
    await expect(fourth).rejects.toThrow(/tenant acme.*server\.limits\.tenant\.generations/);
    leave();
    leave();
    await limits.enter('generations', { tenant: 'acme', actor: 'third' });
    // The place of the key was given back when the tenant had none.
    await expect(limits.enter('generations', ACME)).rejects.toThrow(/tenant acme/);
    // Streams have places of their own.
    await limits.enter('streams', ACME);
  });
});
