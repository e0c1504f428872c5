import { Beat } from '../../../src/projection-engine/runner.js';

const beats: Beat[] = [];
const beat = (): Beat => {
  const made = new Beat();
  beats.push(made);
  return made;
};

beforeEach(() => {
  jest.useFakeTimers();
});
afterEach(() => {
  for (const made of beats.splice(0)) made.end();
  jest.useRealTimers();
});

describe('the rest of read models after a turn', () => {
  it('given one log, when turns take longer, then rests do, up to a quarter of a second', () => {
    const one = beat();
    beat();
    expect([1, 10, 80, 90, 5_000].map((ms) => one.restAfter(ms, 1, true))).toEqual([3, 30, 240, 250, 250]);
  });

  it('given turns that are short, when they find more events, then rests are longer, up to a quarter of a second', () => {
    const one = beat();
    expect([1, 10, 100, 250, 1_000].map((events) => one.restAfter(2, events, true))).toEqual([
      6, 10, 100, 250, 250,
    ]);
  });

  it('given other nodes, whose readers cannot end the rest, when a turn finds more events, then it rests no longer', () => {
    expect(beat().restAfter(2, 1_000, false)).toBe(6);
  });

  it('given several logs that are worked on, when one of them rests, then it does so for as many times as long, and four times at most', () => {
    const logs = Array.from({ length: 6 }, beat);
    expect(logs.map((log) => log.restAfter(10, 1, true))).toEqual([30, 60, 90, 120, 120, 120]);
  });

  it('given logs on which nobody works any more, or not for a second, or found nothing, when another one rests, then they do not count', () => {
    const [one, idle, ended, looked] = [beat(), beat(), beat(), beat()];
    idle.restAfter(10, 1, true);
    jest.advanceTimersByTime(1_000);
    ended.restAfter(10, 1, true);
    ended.end();
    looked.restAfter(10, 0, true);
    expect(one.restAfter(10, 1, true)).toBe(30);
  });
});
