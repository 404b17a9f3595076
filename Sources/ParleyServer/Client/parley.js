export class Parley {}
