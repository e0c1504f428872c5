/** Resolves at the end of the event loop's turn: what arrived together has been seen by then. */
export const endOfTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
