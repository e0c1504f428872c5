/** Resolves at the end of the event loop's turn, when everything that arrived together has been received. */
export const endOfTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
