import { PositionTokens } from '../../../src/event-store/position-tokens.js';

const key = (text: string) => Buffer.from(text, 'hex');
const tokens = new PositionTokens(key('000102030405060708090a0b0c0d0e0f'));
/**
 * Tokens that were computed by another program (`openssl enc -aes-128-ecb -nopad`). They must never change, because
 * clients may keep tokens for ever.
 */
const VECTORS = [
  [{ lane: 0, position: 1 }, 'c0YTlZXAtB5Je73jZfQtCg'],
  [{ lane: 15, position: 1 }, 'tNSK4kl5VSzTOoYT9mjyEA'],
  [{ lane: 3, position: 123_456_789 }, '2aIcKI4_uuuxzi2AHEXK5Q'],
  [{ lane: 7, position: Number.MAX_SAFE_INTEGER }, 'JPnvGQghOJVMfCpPyVW7vg'],
  [{ lane: 65_535, position: 0 }, 'lXgiY_wsXKAbfj92jl9C0A'],
] as const;

describe('PositionTokens', () => {
  it.each(VECTORS)('given %j, when it is encoded and decoded, then its token is %s', (position, token) => {
    expect(tokens.encode(position)).toBe(token);
    expect(tokens.decode(token)).toEqual({ ...position, generation: 1 });
  });

  it('given a later generation of the log, when a position is encoded, then it is told from that of the first', () => {
    const token = tokens.encode({ lane: 3, position: 7, generation: 300 });
    expect(token).not.toBe(tokens.encode({ lane: 3, position: 7 }));
    expect(tokens.decode(token)).toEqual({ lane: 3, position: 7, generation: 300 });
  });

  it('given consecutive positions, when they are encoded, then the tokens do not show their order', () => {
    const [one, two] = [1, 2].map((position) =>
      Buffer.from(tokens.encode({ lane: 0, position }), 'base64url'),
    );
    const same = one?.filter((byte, index) => byte === two?.[index]).length;
    expect(same).toBeLessThan(5);
  });

  it.each([
    ['nothing', ''],
    ['too short', 'c0YTlZXAtB5Je73jZfQt'],
    ['too long', 'c0YTlZXAtB5Je73jZfQtCgAA'],
    ['other bytes', 'AAAAAAAAAAAAAAAAAAAAAA'],
    ['one letter changed', 'd0YTlZXAtB5Je73jZfQtCg'],
    ['no base64', 'ÄÖÜÄÖÜÄÖÜÄÖÜÄÖÜÄÖÜÄÖÜÄ'],
    ['a number', '12'],
  ])('given a text that is no position (%s), when it is decoded, then it is rejected', (_, token) => {
    expect(tokens.decode(token)).toBeUndefined();
  });

  it('given a token of another log, when it is decoded, then it is rejected', () => {
    const other = new PositionTokens(key('ffffffffffffffffffffffffffffffff'));
    for (const [, token] of VECTORS) expect(other.decode(token)).toBeUndefined();
  });
});
